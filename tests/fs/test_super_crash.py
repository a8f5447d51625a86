"""Commits over several databases that clients, the fs process or a full disk cut short."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from litefs.clock import boottime_ns
from litefs.types import Role
from tests.fs.attached import MODES, OPEN, SUM, TOTAL, Transfers, make, sums_in_logs, txid
from tests.fs.harness import python, serving, wait_for


@pytest.mark.parametrize("processes", [1, 4])
def test_kills(tmp_path: Path, processes: int) -> None:
    """Clients, then the fs process, die anywhere: no amount is ever lost or made, in the files and in the logs."""
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    names = ["a.db", "b.db", "c.db"]
    committed = 0
    rounds = int(os.environ.get("LITEFS_SOAK", "30")) // 10
    for number in range(rounds):
        with serving(tmp_path) as fs:
            paths = [fs.mount / name for name in names]
            if not number:
                make(fs, dict(zip(names, MODES, strict=True)))
            assert python(TOTAL, *paths) == "3000\n", "after the fs process was killed"
            assert sum(sums_in_logs(tmp_path, names)) == 3000
            transfers = Transfers(paths, rng, tmp_path / "clients.log")
            try:
                for _ in range(processes):
                    transfers.start()
                before = txid(fs, paths[0])
                wait_for(lambda fs=fs, path=paths[0], at=before: txid(fs, path) > at, 20, "a commit")
                for _ in range(3):
                    time.sleep(rng.random() * 0.3)
                    transfers.kill()
                    transfers.start()
                transfers.kill_all()
                assert python(TOTAL, *paths) == "3000\n", "after clients were killed"
                assert sum(sums_in_logs(tmp_path, names)) == 3000
                for _ in range(processes):
                    transfers.start()
                time.sleep(0.2 + rng.random() * 0.3)
                fs.process.kill()
                fs.process.wait(5)
            finally:
                transfers.kill_all()
                print((tmp_path / "clients.log").read_text()[-2000:])
            committed += transfers.committed
    assert committed


DIES = """
import os, signal, sys
import apsw
point, *paths = sys.argv[1:]
class Dying(apsw.VFS):
    def __init__(self):
        self.journals = 0
        super().__init__("dying", "unix")
    def xDelete(self, name, sync):
        if "-mj" in name:
            self.reached("before")
        super().xDelete(name, sync)
        if "-mj" in name:
            self.reached("after")
        elif self.armed:
            self.reached("one")
    armed = False
    def reached(self, where):
        if self.armed and point == where:
            os.kill(os.getpid(), signal.SIGKILL)
vfs = Dying()
db = apsw.Connection(paths[0], vfs="dying")
names = ["main"]
for number, path in enumerate(paths[1:]):
    db.execute("ATTACH ? AS d%d" % number, (path,))
    names.append("d%d" % number)
db.execute("BEGIN")
for name in names:
    db.execute("UPDATE %s.t SET v = v + 1" % name)
vfs.armed = True
db.execute("COMMIT")
"""


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["same order", "other order"])
@pytest.mark.parametrize(("point", "total"), [("before", 1000), ("after", 1010), ("one", 1010)])
def test_a_client_dies_at_the_unlink(tmp_path: Path, point: str, total: int, order: tuple[int, ...]) -> None:
    """Before it the next clients roll back; after it they only end the journals, and nothing is logged twice."""
    names = ["a.db", "b.db", "c.db"]
    with serving(tmp_path) as fs:
        paths = make(fs, dict.fromkeys(names, "DELETE"))
        before = [txid(fs, path) for path in paths]
        client = subprocess.run(
            [sys.executable, "-c", DIES, point, *map(str, paths)], timeout=20, check=False
        )
        assert client.returncode == -9
        assert [python(SUM, paths[number]) for number in order] == [f"{total}\n"] * 3
        assert sums_in_logs(tmp_path, names) == [total] * 3
        assert [txid(fs, path) - at for path, at in zip(paths, before, strict=True)] == [total > 1000] * 3
        left = python("import os, sys; print(*os.listdir(sys.argv[1]))", fs.mount)
        assert "-journal" not in left
        assert "-mj" not in left
        python(OPEN + "db, _ = attached(sys.argv[1:]); db.execute('UPDATE t SET v = 0')", *paths)
        fs.process.kill()
        fs.process.wait(5)
    with serving(tmp_path) as fs:
        assert [python(SUM, path) for path in paths] == ["0\n", f"{total}\n", f"{total}\n"]


@pytest.mark.parametrize("point", ["before", "after", "one"])
def test_both_die_at_the_unlink(tmp_path: Path, point: str) -> None:
    """The journals are still there, and name a super-journal: recovery asks the logs alone."""
    names = ["a.db", "b.db", "c.db"]
    for stop in (False, True):
        root = tmp_path / str(stop)
        root.mkdir()
        with serving(root) as fs:
            paths = make(fs, dict.fromkeys(names, "DELETE"))
            subprocess.run([sys.executable, "-c", DIES, point, *map(str, paths)], timeout=20, check=False)
            if stop:
                fs.stop()
            else:
                fs.process.kill()
                fs.process.wait(5)
        with serving(root) as fs:
            assert [python(SUM, path) for path in paths] == ["1000\n" if point == "before" else "1010\n"] * 3
            assert not list((root / "data/super").iterdir())


FILL = (
    OPEN
    + """
import time
db, names = attached(sys.argv[1:])
errors, until = set(), time.monotonic() + 30
for number in range(400):
    assert time.monotonic() < until
    try:
        db.execute("BEGIN")
        for name in names:
            db.execute("UPDATE %s.t SET v = v + 1, pad = randomblob(1500)" % name)
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:
        errors.add(error.sqlite_errorname)
        if db.in_transaction:
            db.execute("ROLLBACK")
        break
print("|".join(errors), *(db.execute("SELECT sum(v) FROM %s.t" % name).fetchone()[0] for name in names))
"""
)


def test_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """Wherever the space ends: no member has the transaction, and all goes on when there is space again."""
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    names = ["a.db", "b.db", "c.db"]
    filler = small_disk / "filler"
    with serving(tmp_path) as fs:
        paths = make(fs, dict(zip(names, MODES, strict=True)))
        for _ in range(6):
            free = os.statvfs(small_disk).f_bavail * 4096
            filler.write_bytes(bytes(max(0, free - rng.randrange(300_000))))
            error, *sums = python(FILL, *paths, timeout=60).split()
            assert error in ("SQLITE_FULL", "SQLITE_IOERR_DELETE", "SQLITE_IOERR_WRITE", "SQLITE_CANTOPEN")
            assert sums == [sums[0]] * 3
            assert sums_in_logs(tmp_path, names) == [int(sums[0])] * 3
            filler.unlink()
            assert "stopped" not in (tmp_path / "fs.log").read_text()


SLOW = (
    OPEN
    + """
db, names = attached(sys.argv[1:])
db.execute("BEGIN")
for name in names:
    db.execute("UPDATE %s.t SET v = v + 1 WHERE id = 1" % name)
    db.execute("CREATE TABLE IF NOT EXISTS %s.big(b)" % name)
    db.execute("DELETE FROM %s.big" % name)
    db.execute("INSERT INTO %s.big WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000)"
               " SELECT randomblob(3000) FROM n" % name)
print("ready", flush=True)
sys.stdin.readline()
try:
    db.execute("COMMIT")
    print("done")
except sqlite3.OperationalError as error:
    print(error)
    if db.in_transaction:
        db.execute("ROLLBACK")
print(*(db.execute("SELECT sum(v) FROM %s.t" % name).fetchone()[0] for name in names))
"""
)


def test_a_lease_that_ends_during_the_commit(tmp_path: Path) -> None:
    """After the records: the client gets an error, but it, others and the logs see the transaction everywhere."""
    names = ["a.db", "b.db"]
    with serving(tmp_path) as fs:
        paths = make(fs, {"a.db": "DELETE", "b.db": "PERSIST"})
        low, high, total = 0.0, 2.0, 1000
        for _ in range(30):
            told = len((tmp_path / "fs.log").read_text())
            middle = (low + high) / 2
            fs.become(Role.PRIMARY)
            client = subprocess.Popen(
                [sys.executable, "-c", SLOW, *map(str, paths)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert client.stdout is not None
                assert client.stdout.readline() == "ready\n"
                fs.become(Role.PRIMARY, boottime_ns() + int(middle * 1e9))
                answer, sums = client.communicate("\n", timeout=30)[0].splitlines()
            finally:
                client.kill()
                client.wait(5)
            late = "its outcome is not known yet" in (tmp_path / "fs.log").read_text()[told:]
            total += late or answer == "done"
            assert sums == f"{total} {total}"
            if late:
                assert answer == "disk I/O error"
                break
            # the interval closes in on the moment between the checks, and opens again if it was missed
            low, high = (low * 0.9, middle * 1.1) if answer == "done" else (middle * 0.9, high * 1.1)
        else:
            pytest.fail("the lease never ended between the records and the answer")
        fs.become(Role.PRIMARY)
        assert [python(SUM, path) for path in paths] == [f"{total}\n"] * 2
        assert sums_in_logs(tmp_path, names) == [total] * 2
