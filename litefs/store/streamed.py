"""Whether replicas may hold commits that this node's own disk has lost.

A commit is streamed before it is durable, unless its client asked for that (``synchronous``). What was only
in the page cache survives the death of our processes, not that of the machine. So a primary that nobody can
take over from notes in which boot of the machine it streamed: found in a later boot, with databases that were
not stopped cleanly, the note says that replicas may be ahead.
"""

from __future__ import annotations

from pathlib import Path

from litefs.store import fileops
from litefs.store.paths import DataDir

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""proc(5): random, and new with each boot; of the host, also in a container."""


def boot_id() -> str:
    """What tells this boot of the machine from others; empty if the kernel does not say."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


class Streamed:
    """The note, ``DATA/streamed``: the id of the boot in which this node last streamed as primary."""

    def __init__(self, data: DataDir) -> None:
        self._path = data.path / "streamed"
        self._noted = False

    def note(self) -> None:
        """Store durably that commits of this boot may be on replicas; costs nothing when repeated. Raises
        OSError."""
        if self._noted:
            return
        if self._read() == (boot := boot_id()):
            fileops.sync_dir(self._path.parent)  # who wrote it may have been killed before that
        else:
            fileops.write_file_atomic(self._path, boot.encode() + b"\n")
        self._noted = True

    def before_this_boot(self) -> bool:
        """Whether the note is of another boot than this one, or of one that cannot be told from it."""
        noted = self._read()
        return noted is not None and (not noted or noted != boot_id())

    def _read(self) -> str | None:
        try:
            return self._path.read_text("ascii", errors="replace").strip()
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        """Replicas hold nothing that this node lacks, or will not be asked for it any more. Durable on
        return. Raises OSError."""
        fileops.unlink_durably(self._path)
        self._noted = False
