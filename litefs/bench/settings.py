"""What a run of the load generator is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from litefs.errors import LiteFSError

WORKLOADS = {
    "insert": "one row a transaction",
    "batch": "-batch rows a transaction",
    "read": "one row by its key, each a transaction, of -rows; what is read is verified",
    "mixed": "reads, and inserts of one row, -reads percent of them reads",
    "scan": "the whole table of -rows, each a transaction",
    "large": "transactions that write -megabytes MB",
    "lag": "from a commit on DIR until the row is visible on -replica, at -rate",
    "catch-up": "DIR writes at full speed, then: how fast has -replica all of it",
}

READING = frozenset(("read", "mixed", "scan"))
"""Workloads on a table that is filled before."""

REPLICATING = frozenset(("lag", "catch-up"))
"""Workloads on two directories, a primary's mount and a replica's."""

JOURNAL_MODES = ("WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF")
SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
PAGE_SIZES = tuple(1 << power for power in range(9, 17))
LARGEST_ROW = 256 << 20
MOST_CLIENTS = 1000
MOST_ROUNDS = 10_000
LONGEST_ROUND = 300.0
"""Seconds: a client keeps the latency of each operation, 8 bytes, until its round is over."""


class BenchError(LiteFSError):
    """The load cannot be generated, or the database is not what it has to be."""


class CheckFailed(BenchError):
    """What was read, or what the database holds at the end, is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One workload. Sizes in bytes, times in seconds."""

    workload: str = "insert"
    journal_mode: str = "WAL"
    synchronous: str = "NORMAL"
    page_size: int = 4096
    cache_size: int = -2000
    """As ``PRAGMA cache_size``: pages, or KiB if negative."""
    row_size: int = 100
    rows: int = 100_000
    """In the table before the reading workloads begin."""
    batch: int = 100
    megabytes: float = 10.0
    """Of one transaction of ``large``, in 10^6 bytes."""
    reads: float = 80.0
    """Percentage of ``mixed``."""
    clients: int = 1
    rate: float = 0.0
    """Operations a second of all clients together, begun at fixed times (open loop); 0: each client begins
    one when the last has ended."""
    seed: int = 1
    seconds: float = 2.0
    """Of one round."""
    rounds: int = 5
    warmup: float = 0.2
    """Of each round, not recorded; none at a fixed rate."""
    busy_timeout: float = 5.0

    @property
    def filled(self) -> int:
        """Rows that are there before the first round."""
        return self.rows if self.workload in READING else 0
