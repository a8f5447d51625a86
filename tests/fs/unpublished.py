"""Commits that are complete in the WAL but in no wal-index, as a killed client leaves them, and who publishes them."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.fs.harness import Fs, python

_PUBLISHER = """
import sys, time
from pathlib import Path
from litefs.apply.publish import Publisher
from litefs.store.sums import SumsFile
publisher = Publisher(Path(sys.argv[1]), SumsFile(Path(sys.argv[2])))
print("ready", flush=True)
while True:
    try:
        if publisher.check():
            print("published", flush=True)
    except OSError as error:
        print(error, flush=True)
    time.sleep(0.02)
"""


@contextlib.contextmanager
def publishing(fs: Fs, name: str) -> Iterator[subprocess.Popen[str]]:
    """The node process's part: a process that publishes what is logged and in no wal-index."""
    sums = fs.data / "dbs" / name / "sums"
    command = [sys.executable, "-c", _PUBLISHER, str(fs.mount / name), str(sums)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def wal_of(fs: Fs, name: str, scratch: Path, *statements: str) -> bytes:
    """A whole WAL, with salts of its own, that carries out *statements* in one transaction on the database file.

    The file must be complete: nothing in its WAL.
    """
    copy = scratch / "copy.db"
    shutil.copyfile(fs.data / "dbs" / name / "database", copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        db.execute("BEGIN")
        for statement in statements:
            db.execute(statement)
        db.execute("COMMIT")
        return copy.with_name("copy.db-wal").read_bytes()


def write_wal(fs: Fs, name: str, wal: Path, offset: int = 0) -> str:
    """Write the bytes of *wal* from *offset* on to the database's WAL as a client; "done" or the errno's name."""
    script = """
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
data = open(sys.argv[2], "rb").read()
at = int(sys.argv[3])
try:
    while at < len(data):
        at += os.pwrite(fd, data[at:], at)
    print("done")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    return python(script, fs.mount / f"{name}-wal", wal, offset).strip()
