"""Histograms of latencies, against sorted lists."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from litefs.bench.histogram import OCTAVE_BITS, Histogram, bucket, highest

values = st.lists(st.integers(0, 1 << 45) | st.integers(0, 2000), min_size=1, max_size=200)
shares = st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0]) | st.floats(0, 1)


def nearest_rank(ordered: list[int], share: float) -> int:
    """The smallest value that at least this share does not exceed, by looking at each."""
    return next(value for rank, value in enumerate(ordered, 1) if rank >= share * len(ordered))


@given(values, shares)
def test_percentiles_are_those_of_the_sorted_values(found: list[int], share: float) -> None:
    histogram = Histogram(found)
    exact, read = nearest_rank(sorted(found), share), histogram.percentile(share)
    assert exact <= read <= exact * (1 + 2**-OCTAVE_BITS)
    assert histogram.maximum == max(found)
    assert histogram.percentile(1) == max(found)


@given(values, values)
def test_merging_is_counting_all(first: list[int], second: list[int]) -> None:
    merged, whole = Histogram(first), Histogram(first + second)
    merged.merge(Histogram(second))
    assert (merged.counts, merged.maximum) == (whole.counts, whole.maximum)
    assert merged.count == len(first) + len(second)


@given(values)
def test_rows_say_all_that_was_counted(found: list[int]) -> None:
    histogram = Histogram(found)
    again = Histogram.of_rows(histogram.rows(), histogram.maximum)
    assert (again.counts, again.maximum) == (histogram.counts, histogram.maximum)
    assert [row[0] for row in histogram.rows()] == sorted(row[0] for row in histogram.rows())


@given(st.integers(0, 1 << 62))
def test_buckets_follow_each_other_and_are_narrow(value: int) -> None:
    last = highest(bucket(value))
    assert value <= last
    assert bucket(last) == bucket(value) == bucket(last + 1) - 1
    first = highest(bucket(value) - 1) + 1 if bucket(value) else 0
    assert last - first <= math.ceil(value * 2**-OCTAVE_BITS)


def test_nothing_counted() -> None:
    assert (Histogram().count, Histogram().percentile(0.5), Histogram().rows()) == (0, 0, [])
