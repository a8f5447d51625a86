"""An archive whose objects are encrypted before they leave this machine.

An object, big-endian::

    head, 32 bytes    "LFSSEAL1", first 8 bytes of the key's name, 16 random bytes (salt)
    chunks            16 KiB of plaintext each, the last one less, and the 16-byte tag of AES-256-GCM

Each object has a key of its own: HKDF-SHA256 of the given key with the object's salt. The nonce of a chunk is
its number (11 bytes) and whether it is the last one (1 byte); authenticated with it are the head and the
object's key in the archive. So a chunk that was changed, moved, left out, or taken from another object, and
an object that was cut off or put under another name, is found when it is read. That an object was replaced by
an older one of the same name is not. Names, sizes and times are visible to whoever can list the store.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from litefs.backup.target import SEALED, Reader, Stored, Target, holds
from litefs.errors import ArchiveCorrupt, ArchiveMissing, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK = 16 << 10
"""Bytes of plaintext that are read and checked as one."""
TAG = 16
_SALT = 16
_NAME = 8
HEAD = len(SEALED) + _NAME + _SALT
MAX_HEADS = 4096
"""Objects whose keys are remembered, for reads in their middle."""
_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_NONCE = struct.Struct(">3xQB")


class Keys:
    """The keys of an archive, 32 bytes each: the first encrypts, all decrypt."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._by_name = {_name_of(key): key for key in keys}
        """The first one is the one that encrypts."""

    @classmethod
    def parse(cls, text: str, origin: str) -> Keys:
        """64 hexadecimal digits a line; empty lines and those that begin with ``#`` are left out. Raises
        ConfigError, which shows no key."""
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{origin}: no key in it; make one with `openssl rand -hex 32`")
        for number, line in enumerate(keys, 1):
            if not _KEY.fullmatch(line):
                raise ConfigError(f"{origin}: key {number} is not 64 hexadecimal digits")
        return cls(map(bytes.fromhex, keys))

    @classmethod
    def load(
        cls, file: str | None, variable: str, environment: Mapping[str, str] = os.environ
    ) -> Keys | None:
        """From a file, or an environment variable; None if neither is named. Raises ConfigError."""
        if file is not None:
            try:
                return cls.parse(Path(file).read_text(encoding="ascii"), file)
            except OSError as error:
                raise ConfigError(f"cannot read the key file {file}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ConfigError(f"{file}: not a file of keys") from None
        if variable:
            if variable not in environment:
                raise ConfigError(f"the environment variable {variable} of the archive's keys is not set")
            return cls.parse(environment[variable], f"${variable}")
        return None

    def new(self) -> Head:
        """The head of an object to be written."""
        name, key = next(iter(self._by_name.items()))
        return _head(SEALED + name + secrets.token_bytes(_SALT), key)

    def parse_head(self, data: bytes) -> Head:
        """Of an object that begins with ``data``. Raises ArchiveCorrupt."""
        if len(data) < HEAD or not data.startswith(SEALED):
            raise ArchiveCorrupt("not encrypted, though keys are given")
        name = data[len(SEALED) : len(SEALED) + _NAME]
        key = self._by_name.get(name)
        if key is None:
            raise ArchiveCorrupt(f"encrypted with another key, whose name begins with {name.hex()}")
        return _head(data[:HEAD], key)


@dataclass(frozen=True, slots=True)
class Head:
    """The first bytes of an object, and its own cipher."""

    data: bytes
    cipher: AESGCM

    def seal(self, key: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The object named ``key`` that holds these bytes, in pieces of ``CHUNK`` or more."""
        bound = self.data + key.encode()
        yield self.data
        number = 0
        rest = bytearray()
        for piece in pieces:
            rest += piece
            # One chunk at least stays: the last one is marked.
            whole = (len(rest) - 1) // CHUNK
            if whole <= 0:
                continue
            view = bytes(rest[: whole * CHUNK])
            del rest[: whole * CHUNK]
            yield b"".join(
                self.cipher.encrypt(_NONCE.pack(number + at, 0), view[at * CHUNK : (at + 1) * CHUNK], bound)
                for at in range(whole)
            )
            number += whole
        yield self.cipher.encrypt(_NONCE.pack(number, 1), bytes(rest), bound)

    def open(self, bound: bytes, first: int, data: bytes, ends: bool | None) -> bytes:
        """The plaintext of whole chunks from number ``first`` on. ``ends``: whether the last of them is the
        object's last; None: not known. Raises cryptography's InvalidTag."""
        from cryptography.exceptions import InvalidTag

        step = CHUNK + TAG
        starts = range(0, len(data), step)
        plain = []
        for number, at in enumerate(starts, first):
            chunk = data[at : at + step]
            last = at + step >= len(data)
            if not last or ends is not None:
                plain.append(self.cipher.decrypt(_NONCE.pack(number, last and bool(ends)), chunk, bound))
                continue
            try:
                plain.append(self.cipher.decrypt(_NONCE.pack(number, 0), chunk, bound))
            except InvalidTag:
                plain.append(self.cipher.decrypt(_NONCE.pack(number, 1), chunk, bound))
        return b"".join(plain)


class SealedTarget:
    """Implements :class:`litefs.backup.target.Target` on another one. Sizes are those of the plaintext.

    Raises ArchiveCorrupt for what was not encrypted by one of the keys, under this name, as it is.
    """

    def __init__(self, target: Target, keys: Keys) -> None:
        self._target = target
        self._keys = keys
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._lock = Lock()
        self.name = target.name
        self.layout = target.layout
        # An archive may also be opened at one of its databases: then names are relative to that.
        self._prefixes = ("", f"{target.name.rstrip('/').rpartition('/')[2]}/")

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """See the protocol."""
        for found in self._target.entries(directory, after):
            yield Stored(found.key, plain_size(found.size), found.modified)

    def directories(self, directory: str) -> list[str]:
        """See the protocol."""
        return self._target.directories(directory)

    def size(self, key: str) -> int:
        """See the protocol."""
        return plain_size(self._target.size(key))

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See the protocol."""
        with self._lock:
            known = self._heads.get(key) if offset else None
        try:
            return self._read(key, offset, length, known)
        except ArchiveCorrupt:
            # Or it was replaced since its head was read.
            return self._read(key, offset, length, None)

    def _read(self, key: str, offset: int, length: int | None, head: Head | None) -> bytes:
        first = offset // CHUNK
        # A chunk at least, since even an empty object has one to be checked.
        count = None if length is None else max(1, -(-(offset + length) // CHUNK) - first)
        wanted = None if count is None else count * (CHUNK + TAG)
        if head is None and first == 0:
            data = self._target.read(key, 0, None if wanted is None else HEAD + wanted)
            head, data = self._head(key, data), data[HEAD:]
        else:
            if head is None:
                head = self._head(key, self._target.read(key, 0, HEAD))
            data = self._target.read(key, HEAD + first * (CHUNK + TAG), wanted)
        if not data and first:
            self._check_end(key, head, offset)
            return b""
        ends = True if wanted is None or len(data) < wanted else None
        plain = self._open(key, head, first, data, ends)
        begin = offset - first * CHUNK
        return plain[begin : None if length is None else begin + length]

    def _check_end(self, key: str, head: Head, offset: int) -> None:
        """Whether the object ends at ``offset`` or before, rather than being cut off there."""
        size = self.size(key)
        last = max(0, -(-size // CHUNK) - 1)
        data = self._target.read(key, HEAD + last * (CHUNK + TAG))
        self._open(key, head, last, data, ends=True)
        if offset < size:
            raise ArchiveCorrupt(f"{self.name}/{key}: longer than before")

    def _head(self, key: str, data: bytes) -> Head:
        try:
            head = self._keys.parse_head(data)
        except ArchiveCorrupt as error:
            raise ArchiveCorrupt(f"{self.name}/{key}: {error}") from None
        with self._lock:
            self._heads[key] = head
            self._heads.move_to_end(key)
            if len(self._heads) > MAX_HEADS:
                self._heads.popitem(last=False)
        return head

    def _open(self, key: str, head: Head, first: int, data: bytes, ends: bool | None) -> bytes:
        from cryptography.exceptions import InvalidTag

        if not data or 0 < len(data) % (CHUNK + TAG) < TAG:
            raise ArchiveCorrupt(f"{self.name}/{key}: cut off")
        for prefix in self._prefixes:
            with suppress(InvalidTag):
                return head.open(head.data + (prefix + key).encode(), first, data, ends)
        raise ArchiveCorrupt(f"{self.name}/{key}: damaged, or not what was stored under this name")

    def open(self, key: str) -> SealedReader:
        """See the protocol."""
        return SealedReader(self, key, self._target.open(key))

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """See the protocol."""
        head = self._keys.new()
        if not isinstance(data, bytes):
            return self._target.write(key, head.seal(key, data), timestamp, create=create)
        if self._target.write(key, b"".join(head.seal(key, (data,))), timestamp, create=create):
            return True
        # Equal bytes were encrypted with another salt.
        with suppress(ArchiveMissing):
            return holds(self, key, data)
        return False

    def delete(self, keys: Iterable[str]) -> None:
        """See the protocol."""
        self._target.delete(keys)


class SealedReader:
    """Implements :class:`litefs.backup.target.Reader`: each chunk is given only after it was checked."""

    def __init__(self, target: SealedTarget, key: str, source: Reader) -> None:
        self._target = target
        self._key = key
        self._source = source
        self._head: Head | None = None
        self._number = 0
        self._ahead = bytearray()
        """Read, not yet decrypted."""
        self._ended = False
        self._plain = memoryview(b"")

    def read(self, n: int, /) -> bytes:
        """See the protocol."""
        while not self._plain and not self._ended and n > 0:
            self._more()
        taken, self._plain = self._plain[:n], self._plain[n:]
        return bytes(taken)

    def close(self) -> None:
        """See the protocol."""
        self._ended, self._plain = True, memoryview(b"")
        self._source.close()

    def _more(self) -> None:
        """Decrypt the next chunks. One is kept back until what follows says whether it is the last."""
        if self._head is None:
            while len(self._ahead) < HEAD and (piece := self._source.read(HEAD - len(self._ahead))):
                self._ahead += piece
            self._head = self._target._head(self._key, bytes(self._ahead))
            self._ahead.clear()
        step = CHUNK + TAG
        while len(self._ahead) <= step:
            piece = self._source.read(1 << 20)
            if not piece:
                self._ended = True
                break
            self._ahead += piece
        whole = len(self._ahead) if self._ended else (len(self._ahead) - 1) // step * step
        data = bytes(self._ahead[:whole])
        del self._ahead[:whole]
        plain = self._target._open(self._key, self._head, self._number, data, self._ended)
        self._number += whole // step
        self._plain = memoryview(plain)


def sealed_size(size: int) -> int:
    """Bytes of an object that holds ``size`` bytes."""
    return HEAD + size + TAG * max(1, -(-size // CHUNK))


def plain_size(size: int) -> int:
    """Bytes that an object of ``size`` bytes holds; 0 for what is too short to be one."""
    rest = max(0, size - HEAD)
    return max(0, rest - TAG * -(-rest // (CHUNK + TAG)))


def _head(data: bytes, key: bytes) -> Head:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    salt = data[len(SEALED) + _NAME :]
    return Head(data, AESGCM(HKDF(SHA256(), 32, salt, b"litefs archive object").derive(key)))


def _name_of(key: bytes) -> bytes:
    """What tells keys apart, and nothing of the key."""
    return hashlib.sha256(b"litefs archive key" + key).digest()[:_NAME]
