"""Sections of ``litefs.yml`` that need nothing but values: ``data``, ``fuse``, ``replication``, ``log``,
``tracing``. The text below each key is what docs/configuration.md says of it."""

from __future__ import annotations

from litefs.config_types import Duration, FileMode, Section, Sync


class DataConfig(Section, frozen=True):
    """Where the data directory is and how long the log reaches back."""

    dir: str = "/var/lib/litefs"
    """The databases and their logs. On a local disk, never inside the mount; `litefs mount` makes it."""
    compress: bool = True
    """Compress the pages of a transaction with LZ4."""
    retention: Duration = Duration(600)
    """How far back in time the log of each database reaches. A replica that was away for longer takes a
    snapshot."""
    retention_monitor_interval: Duration = Duration(60)
    """Between two looks for what retention lets go."""
    retention_bytes: int = 1 << 30
    """Ours: bytes of log kept per database; the older end goes first."""


class FuseConfig(Section, frozen=True):
    """The mount."""

    dir: str = "/litefs"
    """The mount point, an empty directory: applications open their databases here."""
    allow_other: bool = False
    """Let other users than the one who mounts use the mount, as far as `uid`, `gid` and `mode` allow."""
    debug: bool = False
    """Log every FUSE request."""
    uid: int | None = None
    """Ours: owner of the files; without it that of the mount point."""
    gid: int | None = None
    """Ours: group of the files; without it that of the mount point."""
    mode: FileMode | None = None
    """Ours: permission bits of database files, in octal; without them those that whoever creates one asks
    for."""


class ReplicatedDatabase(Section, frozen=True):
    """Ours: ``sync`` for some databases."""

    name: str
    """Ours: names of the databases; may have `*`, `?` and `[…]`."""
    sync: Sync
    """Ours: as `replication.sync`, for these."""


class ReplicationConfig(Section, frozen=True):
    """Ours: how many replicas must hold a commit durably before its client is told
    ([what that promises](synchronous-replication.md)). The primary's file counts."""

    sync: Sync = Sync(0)
    """Ours: `off`, `any` (1), or a number of replicas."""
    timeout: Duration = Duration(2)
    """Ours: how long a replica may be silent before commits go on without it, or fail. At most 8s."""
    on_shortage: str = "refuse"
    """Ours: `refuse` commits while too few replicas are in sync, or `degrade` to those that are."""
    databases: tuple[ReplicatedDatabase, ...] = ()
    """Ours: exceptions; the first entry that matches a database counts."""


class LogConfig(Section, frozen=True):
    """The process log on stderr."""

    format: str = "text"
    """`text` (`level=INFO msg="…"`) or `json`."""
    timestamp: bool = False
    """Begin each line with the time."""
    debug: bool = False
    """Log debug messages too."""


class TracingConfig(Section, frozen=True):
    """The trace log: one line for each thing that happens to a database."""

    enabled: bool = True
    """Write it, if `path` is set."""
    path: str = ""
    """The file; empty: none."""
    max_size: int = 64
    """MB after which the file is rotated."""
    max_count: int = 8
    """Rotated files that are kept; 0: all."""
    compress: bool = True
    """Compress rotated files by gzip."""
    stdout: bool = False
    """Ours: write it to standard output too, as the flag `-tracing` does."""

    @property
    def file(self) -> str:
        """Where the trace log is; empty: nowhere."""
        return self.path if self.enabled else ""
