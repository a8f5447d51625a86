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
