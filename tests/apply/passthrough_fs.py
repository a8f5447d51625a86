"""A small FUSE file system over one flat directory, to be killed by tests: ``passthrough_fs.py SOURCE
MOUNTPOINT``.

It keeps pages cached over opens and attributes for a second, as the fs process does, and prints ``ready``
once it serves.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio


class Passthrough(pyfuse3.Operations):  # type: ignore[misc]
    """Inode numbers are those of the files below, plus one for the root."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.source = source
        self.names: dict[int, str] = {}

    def _attributes(self, stat_result: os.stat_result, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        for field in (
            "st_mode",
            "st_nlink",
            "st_uid",
            "st_gid",
            "st_size",
            "st_mtime_ns",
            "st_ctime_ns",
            "st_atime_ns",
        ):
            setattr(entry, field, getattr(stat_result, field))
        entry.st_blksize = 4096
        entry.st_blocks = stat_result.st_blocks
        entry.attr_timeout = entry.entry_timeout = 1.0
        return entry

    def _entry(self, name: str) -> pyfuse3.EntryAttributes:
        try:
            result = os.stat(self.source / name)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        self.names[result.st_ino] = name
        return self._attributes(result, result.st_ino)

    async def lookup(self, parent_inode, name, ctx=None):  # type: ignore[no-untyped-def]
        return self._entry(os.fsdecode(name))

    async def getattr(self, inode, ctx=None):  # type: ignore[no-untyped-def]
        if inode == pyfuse3.ROOT_INODE:
            return self._attributes(os.stat(self.source), inode)
        name = self.names.get(inode)
        if name is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(name)

    async def setattr(self, inode, attr, fields, fh, ctx):  # type: ignore[no-untyped-def]
        path = self.source / self.names[inode]
        if fields.update_size:
            os.truncate(path, attr.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))
        return await self.getattr(inode)

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        fd = os.open(self.source / self.names[inode], os.O_RDWR)
        return pyfuse3.FileInfo(fh=fd, keep_cache=True)

    async def create(self, parent_inode, name, mode, flags, ctx):  # type: ignore[no-untyped-def]
        fd = os.open(self.source / os.fsdecode(name), os.O_RDWR | os.O_CREAT, stat.S_IMODE(mode))
        return pyfuse3.FileInfo(fh=fd, keep_cache=True), self._entry(os.fsdecode(name))

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        return os.pread(fh, size, off)

    async def write(self, fh, off, buf):  # type: ignore[no-untyped-def]
        return os.pwrite(fh, buf, off)

    async def fsync(self, fh, datasync):  # type: ignore[no-untyped-def]
        os.fdatasync(fh)

    async def flush(self, fh):  # type: ignore[no-untyped-def]
        pass

    async def release(self, fh):  # type: ignore[no-untyped-def]
        os.close(fh)

    async def unlink(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        try:
            os.unlink(self.source / os.fsdecode(name))
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno) from None


def main() -> None:
    options = set(pyfuse3.default_options) | {"fsname=litefs-test"}
    pyfuse3.init(Passthrough(Path(sys.argv[1])), sys.argv[2], options)
    print("ready", flush=True)
    trio.run(pyfuse3.main)


if __name__ == "__main__":
    main()
