"""Any number of LTX files into one stream, with a bounded number of them open at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from litefs.backup.target import Reader
from litefs.ltx.compactor import compact
from litefs.ltx.decoder import Decoder

MAX_OPEN = 32
"""Files that are read at the same time."""
_OPENERS = 8
"""Threads that open them: each waits for an object store."""

Opener = Callable[[], Reader]


def merge(inputs: Sequence[Opener], scratch: Path, timestamp: int | None = None) -> Generator[bytes]:
    """``compact`` of what ``inputs`` open, oldest first. More than ``MAX_OPEN`` go through temporary files in
    the directory ``scratch``, which hold up to twice what comes out. Raises as ``compact`` and as the inputs.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="merge-") as directory:
        left, number = list(inputs), 0
        while len(left) > MAX_OPEN:
            done = []
            for at in range(0, len(left), MAX_OPEN):
                path = Path(directory, str(number))
                number += 1
                with path.open("wb") as file:
                    for piece in _compacted(left[at : at + MAX_OPEN], None):
                        file.write(piece)
                done.append(partial(_open_once, path))
            left = list(done)
        yield from _compacted(left, timestamp)


def _open_once(path: Path) -> Reader:
    """The file, which is gone once it is closed."""
    file = path.open("rb", buffering=0)
    path.unlink()
    return file


def _compacted(inputs: Sequence[Opener], timestamp: int | None) -> Generator[bytes]:
    with ExitStack() as stack:
        with ThreadPoolExecutor(_OPENERS, "merge") as pool:
            opened = [pool.submit(_open, opener, stack) for opener in inputs]
        yield from compact([future.result() for future in opened], timestamp)


def _open(opener: Opener, stack: ExitStack) -> Decoder:
    reader = opener()
    stack.callback(reader.close)
    return Decoder(reader.read)
