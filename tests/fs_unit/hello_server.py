"""A mount with one file, for the tests of the session: ``python -m tests.fs_unit.hello_server MOUNTPOINT``.

Prints "serving" when requests are answered; ends on SIGTERM, or when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from typing import Any

import pyfuse3
import trio

from litefs.errors import MountError
from litefs.fs.session import Session

CONTENT = b"hello"
FILE_INODE = pyfuse3.InodeT(2)


class HelloOperations(pyfuse3.Operations):
    """One file, ``hello``; reading it at offset 100 waits 0.2 s, to have a handler that blocks."""

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.st_mode = pyfuse3.ModeT(
            stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
        )
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else 1000
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        if name != b"hello":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(FILE_INODE)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        if offset == 100:
            await trio.sleep(0.2)
        return CONTENT[:size]

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    async def forget(self, inodes: Any) -> None:
        return


async def _serve(session: Session) -> None:
    async def stop_on_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                session.terminate()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal)
        print("serving", flush=True)
        await session.serve()
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(session.unmount)


def main() -> None:
    session = Session(HelloOperations(), sys.argv[1])
    try:
        session.mount()
    except MountError as error:
        sys.exit(str(error))
    trio.run(_serve, session)


if __name__ == "__main__":
    main()
