"""``python -m litefs.apply.stale MOUNTPOINT``: who holds files of a stale mount, and make their connections
fail.

Runs as a child of the node process (:func:`litefs.apply.retire.retire_stale`), which can give up on it. The
holders are found in ``/proc`` by the mount that their descriptors belong to, without a call into the file
system; their ``-shm`` descriptors are borrowed with pidfd_getfd(2), because a new open of a dead mount
fails. Prints a JSON list of holders.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from litefs.apply import locks
from litefs.apply.retire import Holder, drop_cache, is_dead, spoil_database
from litefs.apply.shm import clear_headers, map_header

_SYS_PIDFD_GETFD = 438
_DELETED = " (deleted)"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class _Descriptor:
    pid: int
    fd: int
    path: str


def mounts(pid: str) -> Iterator[tuple[int, str, str]]:
    """(mount id, device "major:minor", mount point) of each mount that a process sees. Raises OSError."""
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines():
        mount_id, _parent, device, _root, point = line.split(" ", 5)[:5]
        yield int(mount_id), device, _unescape(point)


def _unescape(text: str) -> str:
    """mountinfo writes blanks, newlines and backslashes as three octal digits."""
    parts = text.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def descriptors(device: str) -> Iterator[_Descriptor]:
    """Every descriptor in this pid namespace that belongs to a mount of ``device``."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # processes end while we look
            ids = {mount_id for mount_id, found, _ in mounts(entry.name) if found == device}
            if ids:
                yield from _descriptors_of(entry.name, ids)


def _descriptors_of(pid: str, mount_ids: set[int]) -> Iterator[_Descriptor]:
    for entry in os.scandir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(OSError):
            fields = dict(
                line.split(":", 1) for line in Path(entry.path).read_text().splitlines() if ":" in line
            )
            if int(fields.get("mnt_id", "-1")) in mount_ids:
                path = os.readlink(f"/proc/{pid}/fd/{entry.name}")
                yield _Descriptor(int(pid), int(entry.name), path.removesuffix(_DELETED))


def borrow(pid: int, fd: int) -> int:
    """A duplicate of another process's descriptor. Raises OSError (EPERM without the right to trace it)."""
    pidfd = os.pidfd_open(pid)
    try:
        copy: int = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return copy
    finally:
        os.close(pidfd)


def _spoil(held: _Descriptor) -> bool:
    """Make the file fail for whoever has it open; False if it could not be reached, or still answers."""
    try:
        fd = borrow(held.pid, held.fd)
    except OSError:
        return False
    try:
        if not is_dead(fd):
            return False
        if held.path.endswith("-shm"):
            return _clear(fd)
        if not held.path.endswith(("-wal", "-journal")):
            spoil_database(fd)
        drop_cache(fd)
        return True
    finally:
        locks.close(fd)


def _clear(fd: int) -> bool:
    try:
        view = map_header(fd)
    except (OSError, ValueError):  # not cached; or its client had just cut it
        return False
    with view:
        clear_headers(view)
    return True


def retire(mountpoint: Path) -> list[Holder]:
    """Find and spoil all that is held of the mount at ``mountpoint``; empty if nothing is mounted there."""
    devices = [device for _, device, point in mounts("self") if point == os.path.abspath(mountpoint)]
    if not devices:
        return []
    by_pid: dict[int, list[_Descriptor]] = {}
    for held in descriptors(devices[-1]):
        by_pid.setdefault(held.pid, []).append(held)
    holders = []
    for pid, found in sorted(by_pid.items()):
        done = [_spoil(held) for held in found]
        paths = tuple(sorted({held.path for held in found}))
        holders.append(Holder(pid, _command(pid), paths, all(done)))
    return holders


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"


if __name__ == "__main__":
    print(json.dumps([asdict(holder) for holder in retire(Path(sys.argv[1]))]))
