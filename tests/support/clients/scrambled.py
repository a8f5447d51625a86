"""SQL on a database that is encrypted, after a fashion: ``scrambled PATH PLAIN [READONLY]``.

A VFS turns over all bits of the database file behind its first PLAIN bytes; SQLCipher's
``cipher_plaintext_header_size`` leaves 32. It can read a WAL that holds such pages, but not write one: a VFS
gets frames that have their checksums already. Operations: execute(statement).
"""

from __future__ import annotations

import sys

import apsw

from tests.support.clients.protocol import serve

_TURNED = bytes(255 - value for value in range(256))
NAME = "scrambled"
PAGE_SIZE = 4096
_FRAME_HEADER_SIZE = 24


class _File(apsw.VFSFile):
    """Database file and WAL; a journal is left as it is."""

    def __init__(self, name: apsw.URIFilename | str, flags: list[int], plain: int) -> None:
        super().__init__("unix", name, flags)
        self._plain = plain
        self._is_database = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB)
        self._is_wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)

    def _turn(self, data: bytes, offset: int) -> bytes:
        plain = min(max(self._plain - offset, 0), len(data))
        return data[:plain] + data[plain:].translate(_TURNED)

    def xRead(self, amount: int, offset: int) -> bytes:
        data = super().xRead(amount, offset)
        if self._is_wal and amount == PAGE_SIZE:
            pgno = int.from_bytes(super().xRead(4, offset - _FRAME_HEADER_SIZE), "big")
            return self._turn(data, (pgno - 1) * PAGE_SIZE)
        return self._turn(data, offset) if self._is_database else data

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(self._turn(bytes(data), offset) if self._is_database else data, offset)


class _Vfs(apsw.VFS):
    def __init__(self, plain: int) -> None:
        super().__init__(NAME, "unix")
        self._plain = plain

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None:
            return apsw.VFSFile("unix", None, flags)
        return _File(name, flags, self._plain)


def main() -> None:
    path, plain = sys.argv[1:3]
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    vfs = _Vfs(int(plain))
    connection = apsw.Connection(path, apsw.SQLITE_OPEN_READONLY if sys.argv[3:] else flags, vfs=NAME)
    serve({"execute": lambda statement: [list(row) for row in connection.execute(statement)]})
    del vfs


if __name__ == "__main__":
    main()
