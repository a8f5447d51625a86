"""/debug: what helps to find out what a node does, for those whose token is for everything.

``vars`` and ``rand`` are Go LiteFS's; ``stacks`` and ``profile`` stand where Go has pprof.
"""

from __future__ import annotations

import cProfile
import io
import json
import os
import pstats
import re
import sys
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType

import trio
from quart import Response, request
from quart.wrappers.response import ResponseBody

from litefs.errors import DatabaseBusy, FormatError
from litefs.server.app import LiteFSApp, text
from litefs.server.view import NodeView

RANDOM_SECONDS = 60.0
"""How long ``/debug/rand`` sends."""
RANDOM_BYTES = 256 << 10
RANDOM_STREAMS = 2
"""At a time: they are there to fill a network."""
MAX_PROFILE_SECONDS = 30.0
PROFILE_LINES = 60


async def variables(node: NodeView) -> dict[str, object]:
    """The value of ``store`` in ``/debug/vars``."""
    databases = await trio.to_thread.run_sync(node.databases)
    locks = await trio.to_thread.run_sync(node.locks, [one.name for one in databases])
    return {
        "isPrimary": node.is_primary,
        "candidate": node.candidate,
        "dbs": {
            one.name: {
                "name": one.name,
                "txid": f"{one.position.txid:016x}",
                "checksum": f"{one.position.checksum:016x}",
                "locks": locks[one.name],
            }
            for one in databases
        },
    }


class RandomBody(ResponseBody):
    """Random bytes for RANDOM_SECONDS, as many as are taken; ``streams`` counts those that are open."""

    def __init__(self, streams: set[RandomBody]) -> None:
        self._streams = streams
        self._end = 0.0

    async def __aenter__(self) -> RandomBody:
        self._streams.add(self)
        self._end = trio.current_time() + RANDOM_SECONDS
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.discard(self)

    def __aiter__(self) -> RandomBody:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if trio.current_time() >= self._end:
            raise StopAsyncIteration
        return os.urandom(RANDOM_BYTES)


def stacks() -> str:
    """Where each task of the event loop waits, with the tasks that it has started below it, and where each
    thread is."""
    root = trio.lowlevel.current_root_task()
    lines = [] if root is None else list(_tasks(root, 0))
    for thread, frame in sys._current_frames().items():
        lines.append(f"thread {thread}")
        lines += _indented(traceback.format_stack(frame), 1)
    return "\n".join(lines)


def _tasks(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    yield "  " * depth + f"task {task.name}"
    frames: list[tuple[FrameType, int]] = list(task.iter_await_frames())
    yield from _indented(traceback.StackSummary.extract(iter(frames)).format(), depth + 1)
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tasks(child, depth + 1)


def _indented(entries: list[str], depth: int) -> Iterator[str]:
    for entry in entries:
        for line in entry.splitlines():
            yield "  " * depth + line


async def profile(seconds: float) -> str:
    """What the event loop's thread did in that time, by time spent in functions themselves."""
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        await trio.sleep(seconds)
    finally:
        profiler.disable()
    out = io.StringIO()
    pstats.Stats(profiler, stream=out).sort_stats("tottime").print_stats(PROFILE_LINES)
    return out.getvalue()


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", value) or not 0 < float(value) <= MAX_PROFILE_SECONDS:
        raise FormatError(f"seconds: not a number up to {MAX_PROFILE_SECONDS:g}: {value[:40]!r}")
    return float(value)


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoints."""
    streams: set[RandomBody] = set()
    profiling = trio.Lock()

    @app.get("/debug/vars", provide_automatic_options=False)
    async def debug_vars() -> Response:
        found = {"cmdline": sys.argv, "store": await variables(node)}
        return Response(json.dumps(found, indent=1) + "\n", content_type="application/json")

    @app.get("/debug/rand", provide_automatic_options=False)
    async def debug_rand() -> Response:
        if len(streams) >= RANDOM_STREAMS:
            raise DatabaseBusy(f"{RANDOM_STREAMS} such requests are under way")
        return Response(RandomBody(streams), content_type="application/octet-stream")

    @app.get("/debug/stacks", provide_automatic_options=False)
    async def debug_stacks() -> Response:
        return text(stacks())

    @app.get("/debug/profile", provide_automatic_options=False)
    async def debug_profile() -> Response:
        seconds = _seconds(request.args.get("seconds", "5"))
        if profiling.locked():
            raise DatabaseBusy("a profile is being taken")
        async with profiling:
            return text(await profile(seconds))
