"""What the fs process measures of its commits, and tells the node process of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from litefs.link.messages import Measured, Message
from litefs.meters import METERS, Changes, now_ns
from litefs.store.database import Database

REPORT_SECONDS = 1.0
MESSAGE_BYTES = 32 << 10
"""Of names in one message, and of the numbers that they bear."""
_NUMBERS = 100
"""Bytes, at most about, of the numbers of one database."""


@contextmanager
def answering(db: Database) -> Iterator[None]:
    """Take the time until a request may be answered, if that commits."""
    begin, before = now_ns(), db.sums.txid
    yield
    if db.sums.txid != before:
        METERS.answer.since(begin)


async def report(post: Callable[[Message], None]) -> None:
    """Tell what was measured, each second; until cancelled."""
    changes = Changes()
    while True:
        await trio.sleep(REPORT_SECONDS)
        for message in messages(changes):
            post(message)


def messages(changes: Changes) -> Iterator[Measured]:
    """What came since the last time, in messages of bounded size; none if nothing did."""
    times = changes.times()
    part: dict[str, dict[str, int]] = {}
    size = 0
    for name, counts in changes.counts().items():
        part[name] = counts
        size += 4 * len(name) + _NUMBERS
        if size >= MESSAGE_BYTES:
            yield Measured(times, part)
            times, part, size = {}, {}, 0
    if times or part:
        yield Measured(times, part)
