"""What a figure depends on besides the software: the machine, its state, and what the CPUs were taken for."""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litefs.bench.settings import BenchError
from litefs.mountinfo import mount_table

LATENCY_DEVICE = Path("/dev/cpu_dma_latency")
"""Held open with a 32-bit 0, it keeps idle CPUs from sleeping (Linux, pm_qos_interface)."""


def describe(awake: bool, version: str) -> dict[str, Any]:
    """The machine, as it is when a run begins; ``version`` is ours."""
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpusAwake": awake,
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "litefs": version,
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.machine()


def file_system(directory: Path) -> str:
    """The type of the file system that a directory is on, ``?`` if the mount table does not tell."""
    device = os.stat(directory).st_dev
    found = [
        mount for mount in mount_table() if (mount.major, mount.minor) == (os.major(device), os.minor(device))
    ]
    return found[-1].fstype if found else "?"


@contextlib.contextmanager
def awake(wanted: bool) -> Iterator[None]:
    """Keep idle CPUs from sleeping meanwhile: to wake a halted virtual CPU costs more than a FUSE request.

    Raises BenchError if the device cannot be had.
    """
    if not wanted:
        yield
        return
    try:
        device = LATENCY_DEVICE.open("wb", buffering=0)
    except OSError as error:
        raise BenchError(f"{LATENCY_DEVICE}: {error.strerror}; leave -awake out") from None
    with device:
        device.write(struct.pack("=i", 0))
        yield


def cpu_times() -> tuple[int, int]:
    """Ticks of all CPUs in sum: stolen by other tenants of the machine, and all (proc(5), /proc/stat)."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:9]]
    return fields[7], sum(fields)


def stolen(before: tuple[int, int], after: tuple[int, int]) -> float:
    """The percentage of CPU time that was stolen between two :func:`cpu_times`."""
    return 100 * (after[0] - before[0]) / max(1, after[1] - before[1])
