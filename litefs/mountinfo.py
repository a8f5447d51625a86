"""The mount table as /proc tells it: nothing here touches a mount."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One line of mountinfo, as far as it concerns us (proc(5)).

    ``root``: the directory of the file system that is mounted, other than ``/`` for some bind mounts.
    """

    major: int
    minor: int
    path: str
    fstype: str
    source: str
    root: str = "/"


def parse_mountinfo(text: str) -> list[MountInfo]:
    """Read the text of ``/proc/PID/mountinfo``, in mount order. Octal escapes in paths are undone."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(" ")
        major, minor = fields[2].split(":")
        dash = fields.index("-")
        path, source, root = _unescape(fields[4]), _unescape(fields[dash + 2]), _unescape(fields[3])
        mounts.append(MountInfo(int(major), int(minor), path, fields[dash + 1], source, root))
    return mounts


def _unescape(text: str) -> str:
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def mount_table() -> list[MountInfo]:
    """Every mount that this process sees, in mount order."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())
