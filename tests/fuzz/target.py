"""What every fuzz target promises: bounded time and memory, no exception but our own that names the place."""

from __future__ import annotations

import ctypes
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CPU_SECONDS = 2.0
"""CPU time that one input may take; some take milliseconds, most far less."""
MEMORY_BYTES = 512 << 20
"""Address space that a run may add; no input is longer than `mutation.MAX_SIZE`."""


def _as_it_is(data: bytes) -> bytes:
    return data


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads bytes which come from outside."""

    name: str
    seeds: tuple[bytes, ...]
    """Valid inputs, made by our encoders or by SQLite."""
    run: Callable[[bytes], None]
    """Reads an input in every way there is. AssertionError: two ways disagree."""
    errors: tuple[type[Exception], ...]
    """What it may raise."""
    place: str
    """Regular expression that every such error's message must match: it names file or stream, and offset."""
    repair: Callable[[bytes], bytes] = field(default=_as_it_is)
    """Puts the checksums right, so that what lies behind them is tried too."""
    words: tuple[bytes, ...] = ()
    """Pieces that mean something where they are put, for formats made of text."""
    slow: bool = False
    """Works on files: gets fewer rounds."""


def exact(data: bytes | bytearray) -> ctypes.Array[ctypes.c_ubyte]:
    """The same bytes in memory that ends where they end (if there are more than 16).

    Bytes objects and arrays have room behind them, which a kernel could read without a sanitizer's notice.
    """
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)


class Slow(AssertionError):
    """An input took more CPU time than any input may."""


def check(target: Target, data: bytes) -> bool:
    """Run one input; whether it was accepted. Raises whatever breaks the promise."""
    start = time.thread_time()
    try:
        target.run(data)
        accepted = True
    except target.errors as error:
        message = str(error)
        if not re.search(target.place, message):
            raise AssertionError(f"{type(error).__name__} does not name the place: {message!r}") from error
        accepted = False
    spent = time.thread_time() - start
    if spent > CPU_SECONDS:
        raise Slow(f"{target.name}: {len(data)} bytes took {spent:.1f} s of CPU time")
    return accepted


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Inside, what would take more than `MEMORY_BYTES` above now raises MemoryError: a believed length."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
