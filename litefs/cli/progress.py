"""A bar for long work, on a terminal only: what scripts read stays as it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """Show on stderr how far ``what`` is; yields what is told of each piece of work done, in bytes.

    ``total``: bytes, None if not known. The bar is gone afterwards; without a terminal there is none.
    """
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    # Only now: nobody else needs it, and it takes a tenth of a second.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
