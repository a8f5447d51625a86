"""The node's own restore drills: each ``backup.verify-interval`` the primary proves its archive."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import trio

from litefs.backup.drill import Job, Result
from litefs.config_backup import BackupConfig
from litefs.server.view import DrillFigures
from litefs.store import fileops
from litefs.store.paths import DataDir

log = logging.getLogger("litefs.backup")

LOOK_SECONDS = 1.0
"""Between two looks whether a drill is due."""
MAX_SECONDS = 6 * 3600.0
"""That a drill may take, of all databases together."""
RETRY_SECONDS = 600.0
"""After a drill that failed as a whole: the archive was out of reach."""

SCRATCH = "verify"
"""The directory of the data directory that drills restore to."""
NOTE = "verified"
"""When the last one ended, in the data directory."""

Publish = Callable[[str, Mapping[str, object], str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """``interval``: seconds, 0 for never. ``job``: what the drill's process is told, made anew each time.
    ``note``: a file that says when the last one ended, so that a restart does not put the next one off."""

    interval: float
    job: Callable[[], bytes]
    note: Path


def plan_of(backup: BackupConfig, data: DataDir) -> Plan:
    """As the configuration says."""
    job = Job(backup, str(data.path / SCRATCH))
    return Plan(float(backup.verify_interval) if backup.enabled else 0.0, job.encode, data.path / NOTE)


class Verifying:
    """``run`` must be running. One drill at a time, and only while ``leads``: it is ended with the role."""

    def __init__(self, plan: Plan, leads: Callable[[], bool], publish: Publish) -> None:
        self._plan = plan
        self._leads = leads
        self._publish = publish
        self._figures: dict[str, DrillFigures] = {}
        self._failed_at: float | None = None

    def figures(self) -> Sequence[DrillFigures]:
        """What the drills of this process found, by database."""
        return [figures for _, figures in sorted(self._figures.items())]

    async def run(self) -> None:
        """Until cancelled."""
        if not self._plan.interval:
            return
        while True:
            await trio.sleep(LOOK_SECONDS)
            if self._leads() and self._is_due():
                await self.drill()

    def _is_due(self) -> bool:
        if self._failed_at is not None and time.monotonic() < self._failed_at + min(
            RETRY_SECONDS, self._plan.interval
        ):
            return False
        try:
            last = float(json.loads(self._plan.note.read_bytes())["ended"])
        except (OSError, ValueError, KeyError, TypeError):
            return True
        return not 0 <= time.time() - last < self._plan.interval

    async def drill(self) -> None:
        """One drill, now; what it finds is in ``figures``, and told by events."""
        log.info("archive: a restore drill begins")
        begun = time.monotonic()
        found: list[Result] = []
        self._failed_at = time.monotonic()
        with trio.move_on_after(MAX_SECONDS) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_role, nursery.cancel_scope)
                if await self._work(found):
                    self._failed_at = None
                nursery.cancel_scope.cancel()
        if limit.cancelled_caught:
            log.error("archive: the restore drill did not end within %.0f s", MAX_SECONDS)
        if self._failed_at is not None:
            return
        note = json.dumps({"ended": time.time()}).encode()
        await trio.to_thread.run_sync(fileops.write_file_atomic, self._plan.note, note)
        bad = sum(bool(one.problems) for one in found)
        log.info(
            "archive: %d databases restored in %.1f s, %d of them not soundly",
            len(found),
            time.monotonic() - begun,
            bad,
        )

    async def _end_with_role(self, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(LOOK_SECONDS)
            if not self._leads():
                log.info("archive: the restore drill ends with this node's role")
                scope.cancel()
                return

    async def _work(self, found: list[Result]) -> bool:
        """Run the process; whether it came to its end. Cancelled, it is killed."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "litefs.backup.drill"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            await process.stdin.send_all(self._plan.job())
            complaint = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, process.stderr, complaint)
                rest = b""
                async for piece in process.stdout:
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        self._take(msgspec.json.decode(line, type=Result), found)
            code = await process.wait()
            if code:
                text = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
                log.error("archive: the restore drill failed: %s", text or f"exit status {code}")
            return code == 0
        except trio.BrokenResourceError as error:
            log.error("archive: the restore drill failed: %s", error)
            return False
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    await stream.aclose()

    def _take(self, result: Result, found: list[Result]) -> None:
        found.append(result)
        old = self._figures.get(result.name) or DrillFigures(result.name)
        sound = not result.problems
        self._figures[result.name] = replace(
            old,
            sound=sound,
            ended=time.time(),
            seconds=result.seconds,
            txid=result.txid,
            runs=old.runs + 1,
            failures=old.failures + (not sound),
        )
        data: dict[str, object] = {
            "sound": sound,
            "proved": result.proved,
            "txID": f"{result.txid:016x}",
            "timestamp": result.time,
            "seconds": result.seconds,
        }
        if not sound:
            data["problems"] = result.problems
            for problem in result.problems:
                log.error("archive: %s: %s", result.name, problem)
        self._publish("archiveVerify", data, result.name)


async def _drain(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    """Keep the last of what a process complains of."""
    async for piece in stream:
        into += piece
        del into[:-4096]
