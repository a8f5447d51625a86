"""``litefs mount -as-of``: find the moment, mount it, serve until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from litefs.backup.archive import Archive
from litefs.backup.finding import Goal, Moment, find, moment_text
from litefs.backup.histories import histories
from litefs.backup.target import Target
from litefs.errors import ArchiveUnavailable, DatabaseNotFound, MountError, NotRestorable
from litefs.fs import session
from litefs.fs.session import Session
from litefs.notify import Notifier
from litefs.timetravel.cache import PageCache
from litefs.timetravel.database import Database, Fetcher
from litefs.timetravel.operations import Operations

log = logging.getLogger("litefs.timetravel")

READ_AHEAD_KIB = 1024
LOOKUPS = 8
"""Databases that are looked for at a time."""
MIN_CACHE = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """``cache_size`` in bytes; ``names``: only these databases, all if empty; ``timeline``: only of this
    number."""

    goal: Goal
    cache_size: int
    names: tuple[str, ...] = ()
    timeline: int | None = None
    allow_other: bool = False
    debug: bool = False


def run(target: Target, directory: Path, options: Options) -> int:
    """Serve the moment at ``directory`` until SIGTERM or SIGINT; returns the exit code.

    Raises NotRestorable with the nearest moments, DatabaseNotFound, MountError, and as the target.
    """
    found = find_all(target, options)
    return trio.run(_serve, target, directory, options, found)


def find_all(target: Target, options: Options) -> list[tuple[Archive, Moment]]:
    """Every database as of the moment, but those that did not exist or were empty. Raises as ``run``."""
    there = histories(target)
    for name in options.names:
        if name not in there:
            raise DatabaseNotFound(f"database not found in {target.name}: {name}")
    names = options.names or tuple(there)
    if not names:
        raise NotRestorable(f"{target.name} holds no database")

    def look(name: str) -> tuple[Archive, Moment] | None:
        chosen = there[name]
        if options.timeline is not None:
            chosen = [one for one in chosen if one.number == options.timeline]
        return find(chosen, options.goal)

    with ThreadPoolExecutor(LOOKUPS, "find") as pool:
        found = [one for one in pool.map(look, names) if one is not None and one[1].commit]
    if not found:
        raise NotRestorable(f"{target.name}: no database existed at that moment")
    return found


async def _serve(
    target: Target, directory: Path, options: Options, found: list[tuple[Archive, Moment]]
) -> int:
    manager = Notifier.taken_from(os.environ)
    _make_way(directory)
    owner = os.stat(directory)
    stopped = trio.Event()
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            fetcher = Fetcher(target, PageCache(max(MIN_CACHE, options.cache_size)), nursery)
            served = [
                Database(number, moment, fetcher, _again(archive))
                for number, (archive, moment) in enumerate(found)
            ]
            shown_time = options.goal.time or max(moment.time for _, moment in found)
            mount = Session(
                Operations(served, shown_time, owner),
                directory,
                source="litefs-archive",
                allow_other=options.allow_other,
                debug=options.debug,
                read_only=True,
            )
            mount.mount()
            stack.callback(_unmount, mount)
            with suppress(OSError):  # not for everybody
                mount.set_read_ahead(READ_AHEAD_KIB)
            nursery.start_soon(_signals, stopped)
            nursery.start_soon(_until_unmounted, mount, stopped)
            _tell(target, directory, found)
            manager.ready()
            nursery.start_soon(manager.run, lambda: f"{len(found)} databases of {moment_text(shown_time)}")
            await stopped.wait()
            manager.stopping()
            nursery.cancel_scope.cancel()
    return 0


def _unmount(mount: Session) -> None:
    with suppress(MountError):
        mount.unmount(lazy=True)


def _make_way(directory: Path) -> None:
    """Remove what a killed process left there, make the directory. Raises MountError."""
    if session.is_stale(directory):
        session.lazy_unmount(directory)
    if not session.is_mounted(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MountError(f"cannot create mount point {directory}: {error.strerror}") from error


def _tell(target: Target, directory: Path, found: list[tuple[Archive, Moment]]) -> None:
    for archive, moment in found:
        of = f", timeline {archive.number}" if archive.number > 1 else ""
        log.info("%s: TXID %016x of %s%s", moment.name, moment.txid, moment_text(moment.time), of)
    log.info("%d databases of %s are at %s", len(found), target.name, directory)


async def _signals(stopped: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("received %s, stopping", signal.Signals(number).name)
            stopped.set()


async def _until_unmounted(mount: Session, stopped: trio.Event) -> None:
    """Answer requests; somebody may remove the mount by umount(8)."""
    await mount.serve()
    stopped.set()


def _again(archive: Archive) -> Callable[[Moment], Moment]:
    def again(moment: Moment) -> Moment:
        begun = time.monotonic()
        found = find([archive], Goal(txid=moment.txid))
        if found is None:
            raise ArchiveUnavailable(f"{moment.name}: TXID {moment.txid:016x} is gone from {archive.url}")
        log.info("%s: found again in %.1f s", moment.name, time.monotonic() - begun)
        return found[1]

    return again
