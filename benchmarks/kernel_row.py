"""One row of ``benchmarks/kernels.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel beside its plain-Python reference.

    ``kernel`` does ``size`` bytes of work at a call, ``reference`` the same work on ``reference_size`` bytes.
    ``bar``: MB/s that the kernel must reach, None if none is set.
    """

    name: str
    size: int
    kernel: Callable[[], object]
    reference: Callable[[], object]
    reference_size: int
    bar: float | None = None
