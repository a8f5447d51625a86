"""The clock of leases and commit deadlines."""

from __future__ import annotations

import time

_BOOTTIME = time.CLOCK_BOOTTIME
_clock_ns = time.clock_gettime_ns


def boottime_ns() -> int:
    """CLOCK_BOOTTIME in ns; unlike CLOCK_MONOTONIC it goes on while the machine sleeps."""
    return _clock_ns(_BOOTTIME)
