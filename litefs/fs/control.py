"""Control files: ``.primary``, ``.lag`` and ``NAME-pos``, in the shapes that Go LiteFS's clients read."""

from __future__ import annotations

from litefs.fs.databases import FsDatabase
from litefs.fs.inodes import Inode, Kind
from litefs.fs.role import RoleState
from litefs.types import Role

NEVER_SYNCED_MS = (1 << 31) - 1
"""What ``.lag`` shows before the first contact with a primary."""


def content(inode: Inode, role: RoleState) -> bytes:
    """The text of a control file now."""
    if inode.kind is Kind.POS:
        assert inode.db is not None
        return f"{inode.db.position()[0]}\n".encode()
    if inode.kind is Kind.PRIMARY:
        return f"{role.primary or ''}\n".encode()
    return lag_text(role).encode()


def lag_text(role: RoleState) -> str:
    """Milliseconds behind the primary, signed, at least ten characters; 0 on the primary itself."""
    lag = NEVER_SYNCED_MS if role.lag_ms is None else role.lag_ms
    if role.role is Role.PRIMARY:
        lag = 0
    return f"{lag:+010d}\n"


def exists(kind: Kind, role: RoleState, db: FsDatabase | None) -> bool:
    """``.primary`` is there only on a replica that is connected to one."""
    if kind is Kind.PRIMARY:
        return role.role is Role.REPLICA and role.primary is not None
    return kind is Kind.LAG or db is not None


def mtime_ns(inode: Inode, role: RoleState, default_ns: int) -> int:
    """When what the file tells of happened."""
    if inode.kind is Kind.POS and inode.db is not None:
        timestamp = inode.db.position()[1]
        return timestamp * 1_000_000 or default_ns
    if inode.kind is Kind.LAG and role.primary_timestamp_ms:
        return role.primary_timestamp_ms * 1_000_000
    return default_ns
