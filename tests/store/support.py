"""A real SQLite database whose transactions are committed to a ``Database``, and views of what must come of
it.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
from pathlib import Path

from litefs.store.database import Database
from litefs.store.paths import DatabaseDir, DataDir


def pack(*pgnos: int) -> bytes:
    """Page numbers as the store takes them."""
    return struct.pack(f"={len(pgnos)}I", *pgnos)


def new_dir(root: Path, name: str = "app.db") -> DatabaseDir:
    directory = DataDir(root / "data").database_dir(name)
    directory.create()
    return directory


class Writer:
    """Runs SQL on a database of its own and logs each transaction's pages, as capture would.

    ``checkpoint`` copies the database's content to ``directory.database``, which ``run`` leaves as it is.
    """

    def __init__(self, directory: DatabaseDir, source: Path, page_size: int = 4096) -> None:
        self.directory = directory
        self.source = source
        self.page_size = page_size
        self.sql = sqlite3.connect(source, isolation_level=None)
        self.sql.execute(f"PRAGMA page_size={page_size}")
        self.db = Database.open(directory)
        self.pages: list[bytes] = []
        self.images: list[bytes] = []
        """The whole database after each transaction; ``images[n - 1]`` is that of TXID n."""
        if not directory.database.exists():
            directory.database.touch()

    def run(self, *statements: str) -> None:
        self.sql.execute("BEGIN")
        for statement in statements:
            self.sql.execute(statement)
        self.sql.execute("COMMIT")
        self.log()

    def log(self) -> None:
        image = self.source.read_bytes()
        size = self.page_size
        pages = [image[at : at + size] for at in range(0, len(image), size)]
        changed = [p for p, page in enumerate(pages, 1) if p > len(self.pages) or self.pages[p - 1] != page]
        self.pages = pages
        self.db.commit(
            pack(*changed), b"".join(pages[p - 1] for p in changed), len(pages), len(self.images) + 1
        )
        self.images.append(image)

    def vacuum(self, page_size: int) -> None:
        """A full record: the database with pages of another size."""
        self.sql.execute(f"PRAGMA page_size={page_size}")
        self.sql.execute("VACUUM")
        image = self.source.read_bytes()
        self.page_size = page_size
        self.pages = [image[at : at + page_size] for at in range(0, len(image), page_size)]
        pgnos = range(1, len(self.pages) + 1)
        batches = [(pack(pgno), page) for pgno, page in zip(pgnos, self.pages, strict=True)]
        self.db.commit_stream(pack(*pgnos), batches, len(self.pages), len(self.images) + 1, page_size)
        self.images.append(image)

    def fill(self, transactions: int = 5) -> None:
        """A table with some rows, a transaction each; the last one deletes and shrinks nothing."""
        self.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        for _ in range(transactions):
            self.run("INSERT INTO t (v) VALUES (randomblob(3000)), (randomblob(500))")

    def checkpoint(self) -> None:
        shutil.copyfile(self.source, self.directory.database)
        self.db.sync()
        self.db.sums.durable_txid = self.db.position.txid

    def close(self) -> None:
        self.sql.close()
        self.db.close()


def check_integrity(path: Path) -> None:
    """Raises AssertionError unless SQLite finds the file intact."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()
