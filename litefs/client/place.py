"""Where a path is: on which mount, as which database, and how its node is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from litefs.errors import LiteFSError
from litefs.mountinfo import mount_table

StrPath: TypeAlias = str | os.PathLike[str]

SOCKET = "litefs.sock"
"""The node's socket, a name in its data directory."""


class NotOnMount(LiteFSError):
    """A path that is on no LiteFS mount which this process can see."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path is: its mount, its name there (that of the database), and the node's socket."""

    mount: Path
    name: str
    socket: Path


def locate(path: StrPath) -> Place:
    """Find the mount of a path; the path itself need not exist. Raises NotOnMount, OSError."""
    absolute = Path(os.path.abspath(path))
    parent = absolute.parent.resolve()
    device = os.stat(absolute if absolute.is_dir() else parent).st_dev
    whole = absolute.resolve() if absolute.is_dir() else parent / absolute.name
    found = None
    for mount in mount_table():
        if (mount.major, mount.minor) != (os.major(device), os.minor(device)):
            continue
        if mount.fstype == "fuse.litefs" and whole.is_relative_to(mount.path):
            found = mount  # the last one covers the others
    if found is None:
        raise NotOnMount(f"{os.fspath(path)}: not on a LiteFS mount")
    inside = whole.relative_to(found.path)
    name = str(Path(found.root.lstrip("/")) / inside)
    return Place(Path(found.path), "" if name == "." else name, Path(found.source) / SOCKET)
