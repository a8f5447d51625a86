"""What rows hold: a function of the seed and the row's number, so that every read can be verified."""

from __future__ import annotations

import random

_STRIDE = 7919
"""Prime: neighbouring rows have nothing in common."""


class Content:
    """Slices of incompressible bytes."""

    def __init__(self, seed: int, row_size: int) -> None:
        self.row_size = row_size
        self._pool = random.Random(seed).randbytes(max(1 << 20, 2 * row_size))
        self._span = len(self._pool) - row_size

    def __call__(self, number: int) -> bytes:
        """The content of row ``number``, of ``row_size`` bytes."""
        start = number * _STRIDE % self._span
        return self._pool[start : start + self.row_size]
