"""Real time-travel mounts, read by other processes, against copies taken at each transaction."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from litefs.backup.finding import moment_text
from litefs.backup.targets import TargetOptions, open_target
from litefs.config_types import Secret
from litefs.errors import MountError
from litefs.fs import session
from litefs.ltx.format import index_of
from tests.support import s3
from tests.support.handmade import BEGIN, STEP, Archived, same_database
from tests.support.processes import spawn, wait_until

CHECK = """
import hashlib, json, os, sqlite3, sys
out = {}
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        data = file.read()
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with db:
        check = db.execute("PRAGMA integrity_check").fetchone()[0]
        rows = db.execute("SELECT count(*), coalesce(sum(n), 0) FROM t").fetchone()
    db.close()
    stat = os.stat(path)
    out[path] = [hashlib.sha256(data).hexdigest(), check, *rows, stat.st_size, int(stat.st_mtime * 1000)]
print(json.dumps(out))
"""


@contextlib.contextmanager
def mounted(
    archive: Path | str, directory: Path, *flags: str, env: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """A mount by the command, which is gone afterwards; ``env`` is added to the environment."""
    log = directory.parent / f"{directory.name}.log"
    command = [sys.executable, "-m", "litefs.cli.main", "mount", *flags, "-archive", str(archive)]
    with log.open("wb") as output:
        environment = {**os.environ, **(env or {})}
        process = spawn([*command, str(directory)], stdout=output, stderr=output, env=environment)
    try:
        wait_until(
            lambda: session.is_mounted(directory) or process.poll() is not None, 20, "the mount is there"
        )
        assert process.poll() is None, log.read_text()
        yield directory
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
        assert not session.is_mounted(directory)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        if session.is_mounted(directory):
            session.abort_mount(directory)
            with contextlib.suppress(MountError):
                session.lazy_unmount(directory)
        print(log.read_text())


def python(script: str, *arguments: object, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


def shown(copy: bytes) -> str:
    """The digest of a copy as a mount shows it."""
    return hashlib.sha256(copy[:18] + b"\x01\x01" + copy[20:]).hexdigest()


@pytest.fixture
def history(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Archived]:
    page_size, wal = getattr(request, "param", (4096, False))
    made = Archived(tmp_path / "archive", tmp_path / "work", page_size=page_size, wal=wal)
    fill(made)
    yield made
    made.close()


def fill(history: Archived) -> None:
    """Growth, change, shrinking, growth again; every kind of object in the archive."""
    history.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    history.bundle()
    for _ in range(3):
        history.execute(
            "INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 60) "
            "SELECT n, randomblob(900) FROM c"
        )
    history.bundle()
    history.merge(1)
    history.execute("UPDATE t SET n = n + 1 WHERE rowid % 7 = 0")
    history.snapshot()
    history.execute("DELETE FROM t WHERE rowid > 20")
    history.execute("VACUUM")
    history.bundle()
    history.merge(1)
    history.merge(2)
    for number in range(10):
        history.execute(f"INSERT INTO t VALUES ({number}, randomblob(3000))")
    history.bundle()
    history.execute("UPDATE t SET n = 0 WHERE rowid = 1")
    history.bundle(raw=False)


@pytest.mark.parametrize(
    "history", [(4096, False), (4096, True), (512, True), (65536, False)], indirect=True, ids=str
)
def test_every_moment_is_as_it_was(history: Archived, tmp_path: Path) -> None:
    for txid in (1, 4, 5, 7, history.txid - 3, history.txid):
        with mounted(
            tmp_path / "archive", tmp_path / "mnt", "-as-of", moment_text(history.time(txid) + 1)
        ) as mount:
            ((found, check, *_, size, mtime),) = json.loads(python(CHECK, mount / "app.db")).values()
            assert found == shown(history.copies[txid])
            assert check == "ok"
            assert size == len(history.copies[txid])
            assert mtime == history.time(txid)


def test_a_moment_is_before_the_time_given_and_a_txid_is_itself(history: Archived, tmp_path: Path) -> None:
    archive, mnt = tmp_path / "archive", tmp_path / "mnt"
    with mounted(archive, mnt, "-as-of", moment_text(history.time(5))) as mount:
        (found, *_), *_ = json.loads(python(CHECK, mount / "app.db")).values()
        assert found == shown(history.copies[4])
    with mounted(archive, mnt, "-txid", "5", "-database", "app.db") as mount:
        (found, *_), *_ = json.loads(python(CHECK, mount / "app.db")).values()
        assert found == shown(history.copies[5])


def test_an_archive_of_litestream_is_shown_by_its_own_url(history: Archived, tmp_path: Path) -> None:
    history.snapshot()
    prefix = tmp_path / "archive" / "app.db"
    shutil.rmtree(prefix / "litefs")
    last = history.txid
    with mounted(prefix, tmp_path / "mnt", "-as-of", moment_text(history.time(last) + 1)) as mount:
        (found, check, *_), *_ = json.loads(python(CHECK, mount / "app.db")).values()
        assert (found, check) == (shown(history.copies[last]), "ok")


def test_a_change_of_the_page_size(tmp_path: Path) -> None:
    history = Archived(tmp_path / "archive", tmp_path / "work", page_size=1024)
    history.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    history.execute("INSERT INTO t VALUES (1, zeroblob(9000))")
    history.bundle()
    history.db.execute("PRAGMA page_size = 8192")
    history.execute("VACUUM")
    history.bundle()
    history.execute("INSERT INTO t VALUES (2, zeroblob(9000))")
    history.bundle()
    for txid in (2, 3, 4):
        with mounted(
            tmp_path / "archive", tmp_path / "mnt", "-txid", f"{txid:x}", "-database", "app.db"
        ) as mount:
            (found, check, *_), *_ = json.loads(python(CHECK, mount / "app.db")).values()
            assert (found, check) == (shown(history.copies[txid]), "ok")
    history.close()


def test_names_with_slashes_are_directories_and_writes_are_refused(tmp_path: Path) -> None:
    histories = [
        Archived(tmp_path / "archive", tmp_path / f"work{number}", name)
        for number, name in enumerate(("app.db", "tenants/a.db", "tenants/eu/b.db"))
    ]
    for history in histories:
        history.execute("CREATE TABLE t (n INTEGER)")
        history.bundle()
    with mounted(
        tmp_path / "archive", tmp_path / "mnt", "-as-of", moment_text(histories[0].time(1) + 1)
    ) as mount:
        script = """
import errno, os, sqlite3, sys
root = sys.argv[1]
found = sorted(os.path.relpath(os.path.join(d, f), root) for d, _, fs in os.walk(root) for f in fs)
assert found == ["app.db", "tenants/a.db", "tenants/eu/b.db"], found
for act in (
    lambda: open(f"{root}/app.db", "r+b"),
    lambda: open(f"{root}/new", "wb"),
    lambda: os.unlink(f"{root}/app.db"),
    lambda: os.truncate(f"{root}/app.db", 0),
    lambda: os.mkdir(f"{root}/d"),
    lambda: os.rename(f"{root}/app.db", f"{root}/b.db"),
):
    try:
        act()
    except OSError as error:
        assert error.errno == errno.EROFS, error
    else:
        raise AssertionError("written")
db = sqlite3.connect(f"{root}/tenants/eu/b.db")
assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
try:
    db.execute("INSERT INTO t VALUES (1)")
except sqlite3.OperationalError as error:
    assert "readonly" in str(error), error
else:
    raise AssertionError("written")
try:
    os.stat(f"{root}/none")
except FileNotFoundError:
    pass
"""
        python(script, mount)
    for history in histories:
        history.close()


@pytest.mark.parametrize(
    ("time_ms", "near"),
    [
        (BEGIN + 10_000 * STEP, "the nearest before is TXID 0000000000000012"),
        (BEGIN, "no database existed"),
    ],
)
def test_a_moment_outside_the_archive_is_refused(
    history: Archived, tmp_path: Path, time_ms: int, near: str
) -> None:
    command = [sys.executable, "-m", "litefs.cli.main", "mount", "-as-of", moment_text(time_ms)]
    done = subprocess.run(
        [*command, "-archive", str(tmp_path / "archive"), str(tmp_path / "mnt")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert near in done.stderr
    assert not session.is_mounted(tmp_path / "mnt")


def test_what_is_merged_and_removed_meanwhile_is_found_again(history: Archived, tmp_path: Path) -> None:
    txid = history.txid
    with mounted(
        tmp_path / "archive", tmp_path / "mnt", "-as-of", moment_text(history.time(txid) + 1)
    ) as mount:
        python("import sys; open(sys.argv[1], 'rb').read(100)", mount / "app.db")
        history.snapshot()
        for level in (0, 1, 2):
            history.target.delete(file.key for file in history.archive.files(level))
        history.target.delete(key for _, _, key in history.archive.bundle_names())
        (found, check, *_), *_ = json.loads(python(CHECK, mount / "app.db")).values()
        assert (found, check) == (shown(history.copies[txid]), "ok")


def test_a_frame_of_another_page_is_an_error_of_that_page_alone(history: Archived, tmp_path: Path) -> None:
    path = tmp_path / "archive" / history.archive.files(9)[0].key
    data = bytearray(path.read_bytes())
    entries = index_of(data)
    pgno, offset, _ = entries[len(entries) // 2]
    struct.pack_into(">I", data, offset, pgno + 1)
    path.write_bytes(data)
    with mounted(tmp_path / "archive", tmp_path / "mnt", "-txid", "5", "-database", "app.db") as mount:
        script = """
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
assert len(os.pread(fd, 4096, 0)) == 4096
try:
    os.pread(fd, 4096, int(sys.argv[2]))
except OSError as error:
    assert error.errno == errno.EIO, error
else:
    raise AssertionError("read")
"""
        python(script, mount / "app.db", (pgno - 1) * 4096)


@pytest.mark.parametrize("store", ["s3", "sealed"])
def test_object_stores_and_encrypted_archives(tmp_path: Path, store: str) -> None:
    (tmp_path / "keys").write_text("12" * 32)
    with contextlib.ExitStack() as stack:
        url, options, env = str(tmp_path / "archive"), TargetOptions(str(tmp_path / "keys")), {}
        flags = ["-key-file", str(tmp_path / "keys")]
        if store == "s3":
            server = stack.enter_context(s3.running(tmp_path))
            url = f"s3://{s3.BUCKET}/cluster?endpoint={server.endpoint}&region=us-east-1"
            env = {name: server.environment[name] for name in _CREDENTIALS}
            options = TargetOptions(
                access_key_id=env[_CREDENTIALS[0]], secret_access_key=Secret(env[_CREDENTIALS[1]])
            )
            flags = []
        archived = Archived(open_target(url, options), tmp_path / "work", wal=True)
        stack.callback(archived.close)
        fill(archived)
        for txid in (5, archived.txid):
            of = ["-as-of", moment_text(archived.time(txid) + 1)]
            with mounted(url, tmp_path / "mnt", *flags, *of, env=env) as mount:
                (found, check, *_), *_ = json.loads(python(CHECK, mount / "app.db")).values()
                assert (found, check) == (shown(archived.copies[txid]), "ok")


_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def test_a_scan_is_few_requests_and_memory_stays_bounded(tmp_path: Path) -> None:
    history = Archived(tmp_path / "archive", tmp_path / "work")
    history.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    history.execute(
        "INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 60000) "
        "SELECT n, randomblob(800) || zeroblob(200) FROM c"
    )
    history.snapshot()
    history.bundle(raw=False)
    history.close()
    size = len(history.copies[2])
    with mounted(
        tmp_path / "archive", tmp_path / "mnt", "-txid", "2", "-database", "app.db", "-cache-size", "8M"
    ) as mount:
        (pid,) = (
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdigit() and _command(int(entry)).endswith(f"{mount}\0")
        )
        before = _resident(pid)
        begun = time.monotonic()
        python(
            "import sys\nwith open(sys.argv[1], 'rb') as f:\n while f.read(1 << 20): pass", mount / "app.db"
        )
        took = time.monotonic() - begun
        grown = _resident(pid) - before
        print(f"scan of {size >> 20} MiB: {size / took / 1e6:.0f} MB/s, memory +{grown >> 20} MiB")
        assert grown < 48 << 20


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_modes_of_a_header_are_all_that_differs() -> None:
    wal = bytes(18) + b"\x02\x02" + bytes(80)
    assert same_database(bytes(18) + b"\x01\x01" + bytes(80), wal)
    assert not same_database(wal, wal)
