"""Calls of a lease's store: blocking, so in threads, and never waited for longer than a lease can afford."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import trio

from litefs.cluster.lease import LeaseUnavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_THREADS = 8
"""Of one lease, with those that were given up and still wait for their answer."""

_SYSTEM_ERROR = re.compile(r"\[Errno -?\d+\] ([\w ]+)")


class Calls:
    """Runs a store's blocking calls.

    ``store`` names it in messages; ``seconds`` bounds each operation; ``errors`` are the store's own
    exceptions, which with OSError become LeaseUnavailable.
    """

    def __init__(self, store: str, seconds: float, errors: tuple[type[Exception], ...] = ()) -> None:
        self._store = store
        self._seconds = seconds
        self._errors: tuple[type[Exception], ...] = (OSError, *errors)
        self._limiter = trio.CapacityLimiter(MAX_THREADS)

    @contextmanager
    def bounded(self, seconds: float | None = None) -> Iterator[None]:
        """Give the calls inside ``seconds`` (the lease's own if None) altogether. Raises LeaseUnavailable;
        what was asked last may happen all the same, later."""
        limit = self._seconds if seconds is None else seconds
        try:
            with trio.fail_after(limit):
                yield
        except trio.TooSlowError:
            raise LeaseUnavailable(f"{self._store}: no answer within {limit:g} s") from None

    async def run(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """The call's result. Cancelled, it goes on in its thread, and its result is dropped. Raises
        LeaseUnavailable."""
        try:
            return await trio.to_thread.run_sync(
                call, *arguments, abandon_on_cancel=True, limiter=self._limiter
            )
        except self._errors as error:
            # Some stores' messages go on for pages, or wrap what the system said in layers of their own.
            message = str(error).partition("\n")[0] or type(error).__name__
            if found := _SYSTEM_ERROR.findall(message):
                message = found[-1]
            raise LeaseUnavailable(f"{self._store}: {message}") from error
