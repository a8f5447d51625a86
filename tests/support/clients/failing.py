"""SQL on request, over a VFS that dies or fails between a commit's last write and its announcement.

Operations: those of ``sql`` (driver ``apsw``), break_next(cause) and broken(). The next commit to a WAL is
written whole; then, by cause,

kill: the process dies;
fsync: the sync of the WAL fails with EIO;
late: the sync of the WAL begins LATE_SECONDS later;
padding: a write behind the commit frame fails, for want of space (SQLite repeats that frame up to a
sector's end with ``synchronous=FULL`` and ``psow=0``);
shm: the wal-index cannot grow, for want of space (its first region holds 4062 frames, each further one 4096:
https://sqlite.org/walformat.html).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import apsw

from tests.support.clients.protocol import serve

FRAME_HEADER = 24
LATE_SECONDS = 1.0
_PWRITE = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, use_errno=True
)


class Breaker:
    """What is to fail, and whether the commit before it is complete."""

    def __init__(self) -> None:
        self.cause = ""
        self.committed = False
        self.happened = False
        self._end = 0

    def arm(self, cause: str) -> None:
        self.cause, self.committed, self.happened, self._end = cause, False, False, 0

    def is_due(self, cause: str) -> bool:
        due = self.cause == cause and self.committed
        if due:
            self.cause, self.happened = "", True
        return due

    def wrote(self, offset: int, data: bytes) -> None:
        """A write to the WAL succeeded: a frame header with a size ends a transaction with its page."""
        if not self.cause or self.committed:
            return
        if len(data) == FRAME_HEADER and any(data[4:8]):
            self._end = offset + FRAME_HEADER
        elif self._end and offset >= self._end:
            self.committed = True
            if self.cause == "kill":
                os.kill(os.getpid(), signal.SIGKILL)


class Vfs(apsw.VFS):
    """SQLite's own, but for what the breaker wants."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        super().__init__("failing", "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            return Wal(self._breaker, name, flags)
        return apsw.VFSFile("", name, flags)  # type: ignore[arg-type]


class Wal(apsw.VFSFile):
    """The ``-wal`` file."""

    def __init__(self, breaker: Breaker, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._breaker = breaker
        super().__init__("", name, flags)  # type: ignore[arg-type]

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._breaker.is_due("padding"):
            raise apsw.FullError("the padding does not fit")
        super().xWrite(data, offset)
        self._breaker.wrote(offset, data)

    def xSync(self, flags: int) -> None:
        if self._breaker.is_due("fsync"):
            raise apsw.IOError("the sync failed")
        if self._breaker.is_due("late"):
            time.sleep(LATE_SECONDS)
        super().xSync(flags)


def fail_shm(breaker: Breaker) -> Callable[..., int]:
    """Have SQLite's own VFS write through us; the returned function must be kept alive."""
    system = apsw.VFS("system", "")
    real = _PWRITE(system.xGetSystemCall("pwrite64"))

    def pwrite(fd: int, data: int, size: int, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("-shm") and breaker.is_due("shm"):
            ctypes.set_errno(errno.ENOSPC)
            return -1
        return int(real(fd, data, size, offset))

    hook = _PWRITE(pwrite)
    pointer = ctypes.cast(hook, ctypes.c_void_p).value
    assert pointer is not None
    system.xSetSystemCall("pwrite64", pointer)
    return hook


class FailingClient:
    """One connection at a time."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self._connection: Any = None

    def open(self, path: str, psow: bool = True, timeout: float = 5) -> None:
        self.close()
        uri = f"file:{quote(path)}?psow={int(psow)}"
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        self._connection = apsw.Connection(uri, flags=flags, vfs="failing")
        self._connection.set_busy_timeout(int(timeout * 1000))

    def execute(self, statement: str) -> list[list[Any]]:
        return [list(row) for row in self._connection.execute(statement)]

    def script(self, statements: list[str]) -> None:
        for statement in statements:
            self.execute(statement)

    def break_next(self, cause: str) -> None:
        self.breaker.arm(cause)

    def broken(self) -> bool:
        """Whether it has happened."""
        return self.breaker.happened

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


if __name__ == "__main__":
    client = FailingClient()
    vfs = Vfs(client.breaker)
    hook = fail_shm(client.breaker)
    serve(
        {
            "open": client.open,
            "execute": client.execute,
            "script": client.script,
            "break_next": client.break_next,
            "broken": client.broken,
            "close": client.close,
        }
    )
