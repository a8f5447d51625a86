"""``litefs ltx``: the log of a data directory, or LTX files, listed, shown or verified, never changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from litefs import config as configuration
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.progress import progress
from litefs.cli.table import render, size
from litefs.errors import DatabaseNotFound, FormatError, LiteFSError
from litefs.ltx.format import (
    FLAG_NO_CHECKSUM,
    HEADER_SIZE,
    INDEX_LENGTH_SIZE,
    TRAILER_SIZE,
    Header,
    Trailer,
    index_span,
    parse_index,
)
from litefs.store import inspect
from litefs.store.paths import DatabaseDir
from litefs.store.reader import Entry

_FLAGS = (
    Flag("data", "data directory (default: data.dir of the configuration)", "DIR"),
    Flag("config", "configuration of the node, else the first that `litefs mount` would find", "PATH"),
    Flag("name", "only this database", "NAME"),
    Flag("txid", "with show: the transaction, in hexadecimal (default: the last one)", "TXID"),
)
_ACTIONS = ("list", "show", "verify")

USAGE = {
    "ltx": "Usage:\n\n  litefs ltx list [ARGUMENTS] [FILE...]\n  litefs ltx show [ARGUMENTS] [FILE...]\n"
    "  litefs ltx verify [ARGUMENTS] [FILE...]\n\n"
    "list names the transactions that the log holds, show describes one and its pages, verify reads all and\n"
    "ends with 1 if something is damaged, which it names. They look at the data directory of this machine,\n"
    "whether its node runs or not, or at LTX files.\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}",
}
SPECS = {"ltx": Spec(_FLAGS, words=_ACTIONS, paths=True)}

_ROW = "{:<16}  {:>8}  {:>10}  {:<29}  {:<16}"
"""Columns of fixed width: a log has millions of rows, which are printed as they come."""
_HEADER = _ROW.format("TRANSACTION", "PAGES", "SIZE", "TIME", "CHECKSUM")

Read = Callable[[int, int], bytes]
"""So many bytes of a record from an offset in it on."""


def ltx(argv: Sequence[str]) -> int:
    """``litefs ltx``. Raises UsageError, ConfigError, DatabaseNotFound, FormatError, LiteFSError."""
    if not argv or argv[0] not in _ACTIONS:
        if argv and argv[0].lstrip("-") in ("h", "help"):
            raise UsageError
        raise UsageError(f"required: one of {', '.join(_ACTIONS)}")
    action, arguments = argv[0], parse_flags(_FLAGS, argv[1:])
    files = [Path(name) for name in arguments.rest]
    if files and any(arguments.values.values()):
        raise UsageError("give either files, or flags that choose from a data directory")
    try:
        if action == "verify":
            return _verify_files(files) if files else _verify(_chosen(arguments))
        lines = _files(action, files) if files else _logs(action, arguments)
        for line in lines:
            print(line)
    except BrokenPipeError:
        raise  # of who reads what is printed
    except OSError as error:
        raise LiteFSError(f"cannot read {error.filename or 'the log'}: {error.strerror}") from None
    return 0


def _chosen(arguments: Arguments) -> list[DatabaseDir]:
    """The databases meant. Raises DatabaseNotFound, ConfigError, LiteFSError, OSError."""
    values = arguments.values
    data = values["data"] or configuration.load(values["config"] or None).config.data.dir
    found = inspect.database_dirs(Path(data))
    if values["name"]:
        found = [one for one in found if one.name == values["name"]]
        if not found:
            raise DatabaseNotFound(f"database not found in {data}: {values['name']}")
    return found


def _verify(directories: Sequence[DatabaseDir]) -> int:
    bad = False
    for directory in directories:
        with progress(f"verify {directory.name}", inspect.log_size(directory)) as advance:
            found = inspect.verify(directory, advance)
        sound = f"{found.records} sound records, {size(found.size)}"
        if found.records:
            sound += f", {found.first:016x} to {found.last.position}"
        print(f"{found.name}: {sound}")
        if found.problem:
            bad = True
            print(f"{found.name}: DAMAGED: {found.problem}", file=sys.stderr)
    return int(bad)


def _verify_files(files: Sequence[Path]) -> int:
    bad = False
    for path in files:
        try:
            header = inspect.check_file(path).header
            print(f"{path}: sound, {_range(header)}")
        except FormatError as error:
            bad = True
            print(f"{path}: DAMAGED: {error}", file=sys.stderr)
    return int(bad)


def _logs(action: str, arguments: Arguments) -> Iterator[str]:
    chosen = _chosen(arguments)
    if action == "list":
        for directory in chosen:
            yield f"{directory.name}:"
            yield _HEADER
            for entry in inspect.entries(directory):
                yield _row(inspect.header_of(entry), entry.size, entry.point.checksum)
        return
    if len(chosen) != 1:
        raise UsageError("required: -name, the database")
    entry = _find(chosen[0], arguments.values["txid"])
    with entry.extent.path.open("rb") as file:
        start = entry.extent.body_offset
        yield from _show(lambda offset, count: os.pread(file.fileno(), count, start + offset), entry.size)


def _find(directory: DatabaseDir, wanted: str) -> Entry:
    """The record of a transaction, or the last one. Raises UsageError, LiteFSError, FormatError, OSError."""
    try:
        txid = int(wanted, 16) if wanted else None
    except ValueError:
        raise UsageError(f"-txid: not a number in hexadecimal: {wanted!r}") from None
    found = None
    for entry in inspect.entries(directory):
        if txid is None or entry.txid_min <= txid <= entry.txid_max:
            found = entry
    if found is None:
        known = "`litefs ltx list` shows what it holds"
        raise LiteFSError(f"{directory.name}: the log does not hold {wanted or 'a transaction'}; {known}")
    return found


def _files(action: str, files: Sequence[Path]) -> Iterator[str]:
    if action == "list":
        yield f"{_HEADER}  FILE"
    for path in files:
        with path.open("rb") as file:
            count = os.fstat(file.fileno()).st_size

            def read(offset: int, count: int, descriptor: int = file.fileno()) -> bytes:
                return os.pread(descriptor, count, offset)

            if action == "list":
                header, trailer = _ends(read, count)
                yield f"{_row(header, count, trailer.post_apply)}  {path}"
            else:
                yield from _show(read, count)


def _ends(read: Read, count: int) -> tuple[Header, Trailer]:
    """Raises FormatError."""
    end = read(max(0, count - TRAILER_SIZE), TRAILER_SIZE)
    return Header.unpack(read(0, HEADER_SIZE)), Trailer.unpack(end)


def _row(header: Header, count: int, checksum: int) -> str:
    return _ROW.format(_range(header), header.commit, size(count), _time(header), f"{checksum:016x}")


def _range(header: Header) -> str:
    if header.min_txid == header.max_txid:
        return f"{header.min_txid:016x}"
    return f"{header.min_txid:016x}-{header.max_txid:016x}"


def _time(header: Header) -> str:
    return datetime.fromtimestamp(header.timestamp / 1000, UTC).isoformat(timespec="milliseconds")


def _show(read: Read, count: int) -> Iterator[str]:
    """Header, trailer and pages of a record of ``count`` bytes. Raises FormatError."""
    header, trailer = _ends(read, count)
    tail = TRAILER_SIZE + INDEX_LENGTH_SIZE
    offset, length = index_span(read(count - tail, tail), count)
    pages = parse_index(read(offset, length), offset)
    for what, value in (
        ("transaction", _range(header)),
        ("time", _time(header)),
        ("page size", str(header.page_size)),
        ("pages after it", "0 (the database was removed)" if not header.commit else str(header.commit)),
        ("pages in it", str(len(pages))),
        ("size", f"{count} bytes"),
        ("checksum before", f"{header.pre_apply:016x}"),
        ("checksum after", f"{trailer.post_apply:016x}"),
        ("file checksum", f"{trailer.file_checksum:016x}"),
        ("checksums", "not known" if header.flags & FLAG_NO_CHECKSUM else "known"),
        ("node", f"{header.node_id:016X}"),
        ("WAL", f"offset {header.wal_offset}, {header.wal_size} bytes" if header.wal_offset else "none"),
    ):
        yield f"{what + ':':<17}{value}"
    if pages:
        yield render(
            ("PAGE", "OFFSET", "BYTES"),
            [tuple(map(str, page)) for page in pages],
            ("PAGE", "OFFSET", "BYTES"),
        )
