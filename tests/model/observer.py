"""The process that looks at the files of one side, and moves them about. It keeps no connection open."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

from tests.model.content import content_at, error_name
from tests.support.clients.protocol import serve

COMPANIONS = ("", "-journal", "-wal", "-shm")


def sizes(path: str) -> dict[str, int]:
    """The size of each file of a database that there is, but for ``-shm``.

    Of a WAL only whether there is something in it: the mount makes room ahead, and may show an empty one.
    """
    found = {}
    for suffix in COMPANIONS[:3]:
        with contextlib.suppress(FileNotFoundError):
            found[suffix] = os.stat(path + suffix).st_size
    if found.pop("-wal", 0):
        found["-wal"] = 1
    return found


def rest(path: str) -> str:
    """Open and close a database that nobody uses: no WAL and no hot journal stay. The error, or ""."""
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        return error_name(error)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + "-journal")  # of PERSIST mode, zeroed or empty
    return ""


def attempt(command: str, *arguments: str) -> str:
    """A file operation as a person would do it; the error's name, or ""."""
    try:
        if command == "copy":
            shutil.copyfile(arguments[0], arguments[1])
        elif command == "move":
            os.rename(arguments[0], arguments[1])
        elif command == "mkdir":
            os.mkdir(arguments[0])
        else:
            for suffix in COMPANIONS:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(arguments[0] + suffix)
    except OSError as error:
        return f"errno {error.errno}"
    return ""


def load(source: str, target: str) -> str:
    """``sqlite3 SOURCE .dump | sqlite3 TARGET``. What it printed."""
    dumped = _shell(source, ".dump")
    loaded = _shell(target, data=dumped.stdout)
    return (dumped.stderr + loaded.stdout + loaded.stderr).decode()


def _shell(*arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = ["sqlite3", *arguments]
    return subprocess.run(command, input=data or b"", capture_output=True, timeout=20, check=False)


def names(path: str) -> list[str]:
    """The databases below a directory."""
    return sorted(str(file.relative_to(path)) for file in Path(path).rglob("*.db"))


def main() -> None:
    serve(
        {
            "content": content_at,
            "sizes": sizes,
            "rest": rest,
            "attempt": lambda command, arguments: attempt(command, *arguments),
            "load": load,
            "names": names,
        }
    )


if __name__ == "__main__":
    main()
