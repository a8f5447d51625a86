"""Latencies as a log-linear histogram, the layout of HdrHistogram: every octave in 256 equal buckets.

What is read from it is at most 1/256 above the true value, however many samples there are; the maximum is
exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

OCTAVE_BITS = 8
"""log2 of the buckets of an octave."""


def bucket(value: int) -> int:
    """The index of the bucket of a value ≥ 0; indices ascend with values."""
    shift = max(0, value.bit_length() - OCTAVE_BITS - 1)
    return (shift << OCTAVE_BITS) + (value >> shift)


def highest(index: int) -> int:
    """The highest value in a bucket."""
    shift = max(0, (index >> OCTAVE_BITS) - 1)
    return (((index - (shift << OCTAVE_BITS)) + 1) << shift) - 1


class Histogram:
    """Counts of values in nanoseconds; picklable."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self.counts: Counter[int] = Counter()
        self.maximum = 0
        self.add(values)

    def add(self, values: Iterable[int]) -> None:
        """Count values ≥ 0."""
        values = list(values)
        if values:
            self.counts.update(map(bucket, values))
            self.maximum = max(self.maximum, max(values))

    def merge(self, other: Histogram) -> None:
        """Count what another one has counted, too."""
        self.counts.update(other.counts)
        self.maximum = max(self.maximum, other.maximum)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return self.counts.total()

    def percentile(self, share: float) -> int:
        """The nearest-rank percentile in ns, ``share`` in 0…1: the smallest value that at least this share of
        the values does not exceed. 0 if nothing was counted."""
        rank = max(1, math.ceil(share * self.count))
        for index, count in sorted(self.counts.items()):
            rank -= count
            if rank <= 0:
                return min(self.maximum, highest(index))
        return 0

    def rows(self) -> list[list[int]]:
        """For JSON: ``[highest value of the bucket in ns, count]``, ascending, empty buckets left out."""
        return [[highest(index), count] for index, count in sorted(self.counts.items())]

    @classmethod
    def of_rows(cls, rows: Iterable[Sequence[int]], maximum: int) -> Histogram:
        """What :meth:`rows` was made of."""
        made = cls()
        made.counts.update({bucket(value): count for value, count in rows})
        made.maximum = maximum
        return made
