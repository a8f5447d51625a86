"""An archive in S3, Google Cloud Storage or Azure, as Litestream's replicas lay it out, through obstore.

Each request is repeated, with growing pauses, while the store answers 5xx or not at all; how long that takes
is bounded (``SECONDS``, ``RETRY_SECONDS``), and bounded again by how often the caller asks. Importing this
module loads obstore: only where an object store is configured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from litefs.backup.layout import Layout
from litefs.backup.target import Stored, holds, rfc3339
from litefs.errors import ArchiveMissing, ArchiveUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import ObjectStore

SECONDS = 20.0
"""Of one request that carries little."""
BULK_SECONDS = 300.0
"""Of one request that carries up to ``MAX_EMBEDDED`` bytes, or a part."""
RETRY_SECONDS = 20.0
"""After which a request is not begun again."""
RETRIES = 6
PIECE = 8 << 20
"""Bytes of one read of a stream; it is begun again where it ended."""
PART = 16 << 20
"""Bytes of one part of an upload; S3 takes 10,000 of them."""
PARTS_AT_A_TIME = 2
PAGE = 1000
"""Objects of one listing or deletion, as S3 limits them."""
CREATES = 3
_BULK = 4 << 20
_LAST = "\U0010ffff"
_QUERY = re.compile(r"\?[^\s)]*")

S3_TIMESTAMP = "litestream-timestamp"
AZURE_TIMESTAMP = "litestreamtimestamp"
"""Metadata key of the newest transaction's time (Litestream v0.5, ``*/replica_client.go``)."""


class BucketTarget:
    """Implements :class:`litefs.backup.target.Target`."""

    def __init__(
        self,
        connect: Callable[[dict[str, Any], Any], ObjectStore],
        name: str,
        prefix: str,
        *,
        flat: bool,
        timestamp: str = S3_TIMESTAMP,
        seconds: float = SECONDS,
    ) -> None:
        """``connect`` makes the store from obstore's client options and retry options; ``prefix`` is that of
        all keys, without slashes around. ``flat``: name levels as on S3. ``seconds`` bounds a small
        request."""
        self.name = name
        self.layout = Layout(flat=flat)
        self._base = f"{prefix}/" if prefix else ""
        self._timestamp = timestamp
        retry = {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=min(seconds, RETRY_SECONDS)),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=3),
                "base": 2,
            },
        }

        def limited(total: float) -> ObjectStore:
            times = {"timeout": timedelta(seconds=total), "connect_timeout": timedelta(seconds=min(5, total))}
            return connect(times, retry)

        self._store = limited(seconds)
        self._bulk = limited(max(seconds, BULK_SECONDS))

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """See the protocol. What lies in directories below is jumped over, not walked through."""
        base = self._base + directory
        offset = base + after if after else None
        while True:
            for found in self._listed(base, offset):
                rest = str(found["path"])[len(base) :]
                below, slash, _ = rest.partition("/")
                if slash:
                    offset = f"{base}{below}/{_LAST}"
                    break
                modified = round(found["last_modified"].timestamp() * 1000)
                yield Stored(directory + rest, found["size"], modified)
            else:
                return

    def _listed(self, base: str, offset: str | None) -> Iterator[Any]:
        """The objects whose keys begin with ``base`` and come after ``offset``, ascending."""
        last = offset or ""
        with self._translated():
            pages = iter(obstore.list(self._store, base or None, offset=offset, chunk_size=PAGE))
        while True:
            with self._translated():
                page: Sequence[Any] = next(pages, ())
            if not page:
                return
            for found in page:
                # Not all stores begin behind the offset, and a directory bucket of S3 sorts nothing.
                if found["path"] <= last:
                    if last == offset:
                        continue
                    raise ArchiveUnavailable(f"{self.name}: the store lists objects in no order")
                last = found["path"]
                yield found

    def directories(self, directory: str) -> list[str]:
        """See the protocol."""
        base = self._base + directory
        with self._translated():
            found = obstore.list_with_delimiter(self._store, base or None)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See the protocol."""
        if length == 0:
            self.size(key)
            return b""
        try:
            return self._get(key, offset, length)[0]
        except ArchiveUnavailable:
            # Which stores report in several ways.
            if offset >= self.size(key):
                return b""
            raise

    def _get(
        self, key: str, offset: int, length: int | None, version: str | None = None
    ) -> tuple[bytes, Any]:
        """Bytes of an object of that version, and what the store says of it. Raises as ``read``."""
        options: Any = {}
        if offset or length is not None:
            options["range"] = {"offset": offset} if length is None else (offset, offset + length)
        if version is not None:
            options["if_match"] = version
        store = self._store if length is not None and length <= _BULK else self._bulk
        with self._translated(key):
            try:
                found = obstore.get(store, self._base + key, options=options)
                return bytes(found.bytes()), found.meta
            except PreconditionError:
                raise ArchiveUnavailable(f"{self.name}/{key}: replaced while it was read") from None

    def size(self, key: str) -> int:
        """See the protocol."""
        try:
            with self._translated(key):
                return int(obstore.head(self._store, self._base + key)["size"])
        except ArchiveMissing:
            # Only the answer to a GET says whether it is the bucket that is missing.
            return int(self._get(key, 0, 1)[1]["size"])

    def open(self, key: str) -> BucketReader:
        """See the protocol."""
        return BucketReader(self, key)

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """See the protocol."""
        attributes: Any = None if timestamp is None else {self._timestamp: rfc3339(timestamp)}
        if isinstance(data, bytes):
            return self._put(key, data, attributes, create)
        pieces = iter(data)
        begun = bytearray()
        for piece in pieces:
            begun += piece
            if len(begun) > _BULK:
                break
        else:
            return self._put(key, bytes(begun), attributes, create)
        assert not create
        failed: list[Exception] = []
        try:
            with self._translated(key, writing=True):
                obstore.put(
                    self._bulk,
                    self._base + key,
                    _noted(chain((bytes(begun),), pieces), failed),
                    attributes=attributes,
                    chunk_size=PART,
                    max_concurrency=PARTS_AT_A_TIME,
                )
        except ArchiveUnavailable:
            if failed:
                raise failed[0] from None
            raise
        return True

    def _put(self, key: str, data: bytes, attributes: Any, create: bool) -> bool:
        store = self._store if len(data) <= _BULK else self._bulk
        mode: Any = "create" if create else "overwrite"
        for _ in range(CREATES):
            with self._translated(key, writing=True):
                try:
                    obstore.put(
                        store, self._base + key, data, attributes=attributes, mode=mode, use_multipart=False
                    )
                    return True
                except (AlreadyExistsError, PreconditionError):
                    pass
            # Ours, if the answer to an earlier try was lost. None: another one's that was not finished.
            with suppress(ArchiveMissing):
                return holds(self, key, data)
        raise ArchiveUnavailable(f"{self.name}/{key}: the store refuses it, and has none")

    def delete(self, keys: Iterable[str]) -> None:
        """See the protocol."""
        paths = [self._base + key for key in keys]
        for start in range(0, len(paths), PAGE):
            batch = paths[start : start + PAGE]
            try:
                with self._translated(batch[0]):
                    obstore.delete(self._store, batch)
            except ArchiveMissing:
                self._delete_each(batch)
            except ArchiveUnavailable as error:
                if "NotImplemented" not in str(error):
                    raise
                self._delete_each(batch)

    def _delete_each(self, paths: Sequence[str]) -> None:
        """One by one, for stores that cannot delete many, or say of what is not there that it is not."""
        for path in paths:
            with suppress(ArchiveMissing), self._translated(path):
                obstore.delete(self._store, path)

    @contextmanager
    def _translated(self, key: str | None = None, *, writing: bool = False) -> Iterator[None]:
        """obstore's errors as ours."""
        place = self.name if key is None else f"{self.name}/{key}"
        try:
            yield
        except FileNotFoundError as error:
            text = _said(error)
            if writing or key is None or "NoSuchBucket" in text or "ContainerNotFound" in text:
                raise ArchiveUnavailable(f"{place}: {text}") from None
            raise ArchiveMissing(f"{place}: not there") from None
        except (BaseError, TimeoutError, ValueError) as error:
            raise ArchiveUnavailable(f"{place}: {_said(error)}") from None


class BucketReader:
    """Implements :class:`litefs.backup.target.Reader` by reads of ``PIECE`` bytes, all of one version."""

    def __init__(self, target: BucketTarget, key: str) -> None:
        """Raises as ``read``."""
        self._target = target
        self._key = key
        self._size = target.size(key)
        self._version: str | None = None
        self._at = 0
        """Where the next piece begins."""
        self._piece = memoryview(b"")

    def read(self, n: int, /) -> bytes:
        """See the protocol."""
        if not self._piece and self._at < self._size and n > 0:
            data, meta = self._target._get(self._key, self._at, PIECE, self._version)
            self._version, self._size = meta["e_tag"], meta["size"]
            self._at += len(data)
            if not data:
                raise ArchiveUnavailable(f"{self._target.name}/{self._key}: ends before its size")
            self._piece = memoryview(data)
        taken, self._piece = self._piece[:n], self._piece[n:]
        return bytes(taken)

    def close(self) -> None:
        """See the protocol."""
        self._piece, self._size = memoryview(b""), 0


def _noted(pieces: Iterable[bytes], failed: list[Exception]) -> Iterator[bytes]:
    """The pieces; an error of whoever makes them is put into ``failed``, since it is none of the store."""
    try:
        yield from pieces
    except Exception as error:
        failed.append(error)
        raise


def _said(error: BaseException) -> str:
    """The first line of what obstore says, and the store's own code; without the queries of URLs, which may
    carry a signature."""
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    line = _QUERY.sub("", text.partition("\n")[0]).partition(": <?xml")[0]
    return f"{line} ({code[1]})" if code is not None else line
