"""Whether the mount answers: what ``GET /healthz`` asks."""

from __future__ import annotations

from pathlib import Path

import trio

PROBE_SECONDS = 2.0
"""The mount must answer within this time."""


class MountProbe:
    """Reads a control file of the mount, which the kernel never answers from a cache; ``run`` must be
    running."""

    def __init__(self, mountpoint: Path) -> None:
        self._file = mountpoint / ".lag"
        self._wanted = trio.Event()
        self._answered = trio.Event()
        self._complaint = ""

    async def run(self) -> None:
        """Look when somebody asks; until cancelled. A mount that hangs holds one thread, no more."""
        while True:
            await self._wanted.wait()
            self._wanted, answered = trio.Event(), self._answered
            try:
                await trio.to_thread.run_sync(self._file.read_bytes, abandon_on_cancel=True)
                self._complaint = ""
            except OSError as error:
                self._complaint = f"the mount does not answer: {error.strerror or error}"
            self._answered = trio.Event()
            answered.set()

    async def complaint(self) -> str:
        """Why the mount does not serve; empty if it does."""
        answered = self._answered
        self._wanted.set()
        with trio.move_on_after(PROBE_SECONDS):
            await answered.wait()
            return self._complaint
        return f"the mount does not answer within {PROBE_SECONDS:g} s"
