"""What an archive is kept in: a directory or an object store, behind one protocol.

All calls block and are made from worker threads, several at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from litefs.backup.layout import Layout

SEALED = b"LFSSEAL1"
"""The first bytes of an encrypted object (sealed.py)."""
ENCRYPTED = "the archive is encrypted; give its key"


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: ``key`` relative to the target's root, ``size`` bytes, ``modified`` Unix ms (of a directory
    the time that was given to ``write``; of an object store, which does not list that, when it was
    written)."""

    key: str
    size: int
    modified: int

    @property
    def name(self) -> str:
        """The last component of the key."""
        return self.key.rpartition("/")[2]


class Reader(Protocol):
    """An object as a stream. ``read(n)``: at most ``n`` bytes, none only at the end. Raises as ``read``."""

    def read(self, n: int, /) -> bytes: ...

    def close(self) -> None: ...


class Target(Protocol):
    """Keys are relative, with ``/`` between components. Raises ArchiveUnavailable if the store fails or does
    not answer (what was asked may have happened), ArchiveMissing for a key that is not there."""

    name: str
    """The URL, without secrets, for messages."""
    layout: Layout

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """The objects directly in ``directory`` (ends with ``/``, or is empty), ascending by name, those
        named ``after`` or before left out; none if there is no such directory."""

    def directories(self, directory: str) -> list[str]:
        """Names of the directories directly in ``directory``, ascending."""

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object: ``length`` from ``offset`` on, less where it ends before."""

    def size(self, key: str) -> int:
        """Bytes of an object."""

    def open(self, key: str) -> Reader:
        """An object from its first byte, in bounded memory; goes on by itself after a lost connection."""

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """Store an object whole and durably, replacing what is there; readers see all of it or none.

        ``timestamp``: Unix ms of the newest transaction in it, stored as Litestream stores it. ``create``:
        only if there is none of that key, else False (``data`` must be bytes then); True also if there is one
        of the same bytes: who repeats a write whose answer was lost is told what became of it.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error."""


def holds(target: Target, key: str, data: bytes) -> bool:
    """Whether an object is there with just these bytes. Raises as ``Target.read``."""
    return target.size(key) == len(data) and target.read(key) == data


def rfc3339(timestamp: int) -> str:
    """Unix ms as Go's RFC3339Nano in UTC: no zeros at the end of the fraction, and no empty fraction."""
    seconds, milliseconds = divmod(timestamp, 1000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}{f'.{milliseconds:03d}'.rstrip('0') if milliseconds else ''}Z"
