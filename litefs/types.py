"""Frozen values that cross package borders."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

CHECKSUM_FLAG = 1 << 63
"""Bit 63 is set in every LTX checksum, so that 0 can mean "none"."""

MAX_TXID = (1 << 64) - 2
"""The last transaction there can be: the number after it still fits where the next one is announced."""

_POSITION = re.compile(r"\A([0-9a-f]{16})/([0-9a-f]{16})\n?\Z")
_POINT = re.compile(r"\A([0-9a-f]{16})/([0-9a-f]{16})/([0-9a-f]{16})\Z")


class Role(enum.StrEnum):
    """What this node is for every database it holds."""

    PRIMARY = "primary"
    REPLICA = "replica"
    NONE = "none"
    """Neither: no lease and no primary known. Commits are refused."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A point in a database's history: the last transaction and the rolling checksum after it.

    ``txid`` 0 with ``checksum`` 0 is the position before the first transaction.
    """

    txid: int = 0
    checksum: int = 0

    def __str__(self) -> str:
        return f"{self.txid:016x}/{self.checksum:016x}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read the text form of ``NAME-pos`` files (``%016x/%016x``). Raises ValueError."""
        match = _POSITION.match(text)
        if match is None:
            raise ValueError(f"not a position: {text!r}")
        return cls(int(match[1], 16), int(match[2], 16))


ZERO = Position()


@dataclass(frozen=True, slots=True)
class Point:
    """A position as nodes compare it: with ``hash``, the XXH3-64 that logs have of the record that led there.

    The position alone does not tell histories apart: CRCs are affine, so the same change of another page
    leads to the same checksum. A record bears its node and time, so no two nodes write the same one; and who
    takes the records of another node compares the point they follow. Before the first transaction all is 0.
    """

    txid: int = 0
    checksum: int = 0
    hash: int = 0

    @property
    def position(self) -> Position:
        """What people, files and clients know it by."""
        return Position(self.txid, self.checksum)

    def __str__(self) -> str:
        return f"{self.txid:016x}/{self.checksum:016x}/{self.hash:016x}"

    @classmethod
    def parse(cls, text: str) -> Point:
        """Read what ``str`` gives. Raises ValueError."""
        match = _POINT.match(text)
        if match is None:
            raise ValueError(f"not a point in a history: {text!r}")
        return cls(*(int(part, 16) for part in match.groups()))


START = Point()
"""Before the first transaction, at position ``ZERO``."""
