"""Every workload on native directories, and what happens to databases there."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from litefs.bench import database
from litefs.bench.check import check
from litefs.bench.replicas import LagSession
from litefs.bench.run import run_rounds
from litefs.bench.session import NAME, Session
from litefs.bench.settings import WORKLOADS, BenchError, CheckFailed, Settings
from litefs.bench.workloads import kinds
from litefs.cli.main import main
from tests.bench.support import COMMAND, SHORT, bench, measured, started
from tests.support.processes import ROOT, children, end, wait_until

QUICK = Settings(seconds=0.05, warmup=0.01, rows=500, batch=7, megabytes=0.3, clients=2)


@pytest.mark.parametrize("workload", [each for each in WORKLOADS if each not in ("lag", "catch-up")])
def test_workload(workload: str, tmp_path: Path) -> None:
    """Two clients get something done, and all of it is there; seen by another reader than the check."""
    settings = Settings(
        workload=workload, seconds=0.1, warmup=0.02, rows=500, batch=7, megabytes=0.3, clients=2
    )
    with Session(tmp_path, settings) as session:
        run_rounds([session], 2, lambda: False)
        rounds = session.target.rounds
        assert [[kind.name for kind in each.kinds] for each in rounds] == [list(kinds(settings))] * 2
        assert all(each.rate > 0 for each in rounds)
        assert all(histogram.count for histogram in session.target.kinds().values())
        assert session.target.checked
        with contextlib.closing(sqlite3.connect(session.path)) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM entry").fetchone()
        counted = sum(kind.latencies.count for each in rounds for kind in each.kinds)
        inserted = sum(kind.latencies.count for each in rounds for kind in each.kinds if kind.name != "read")
        assert counted >= 2
        if workload in ("read", "scan"):
            assert rows == 500
        elif workload == "large":
            assert session.written >= inserted
        else:
            # The rows of the warm-up are there, but not in the latencies.
            size = 7 if workload == "batch" else 1
            assert rows == settings.filled + session.written >= settings.filled + inserted * size
    assert list(tmp_path.iterdir()) == []


def test_lag_of_a_directory_itself(tmp_path: Path) -> None:
    """A reader of the same directory sees rows at once: the method itself costs little."""
    found = measured("lag", "-replica", tmp_path, tmp_path)
    (target,) = found["targets"]
    assert target["checked"]
    commits, visible = (target["kinds"][kind]["latency"] for kind in ("commit", "visible"))
    assert commits["count"] + sum(each["unstarted"] for each in target["rounds"]) == 20
    assert visible["count"] == commits["count"]
    assert visible["p50"] < 0.2


def test_the_replica_is_checked_too(tmp_path: Path) -> None:
    """A directory whose database is the other's, until it gets one of its own that lacks a row."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (second / NAME).symlink_to(first / NAME)
    with LagSession(first, second, Settings(workload="lag", seconds=0.1, rate=100)) as session:
        session.round()
        session.check()
        (second / NAME).unlink()
        with contextlib.closing(sqlite3.connect(second / NAME)) as copy:
            with contextlib.closing(sqlite3.connect(first / NAME)) as source:
                source.backup(copy)
            with copy:
                copy.execute("DELETE FROM entry WHERE id = 2")
        with pytest.raises(CheckFailed, match=str(second)):
            session.check()


@pytest.mark.parametrize(
    ("mode", "synchronous", "page_size"),
    [("DELETE", "FULL", 512), ("MEMORY", "OFF", 65536), ("WAL", "EXTRA", 4096)],
)
def test_settings_arrive(mode: str, synchronous: str, page_size: int, tmp_path: Path) -> None:
    words = (
        "-journal-mode",
        mode.lower(),
        "-synchronous",
        synchronous,
        "-page-size",
        str(page_size),
        "-keep",
    )
    measured("insert", *words, "-row-size", "33", "-clients", "2", "-seed", "9", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as connection:
        persistent = "wal" if mode == "WAL" else "delete"  # the others are a connection's own
        assert connection.execute("PRAGMA journal_mode").fetchone() == (persistent,)
        assert connection.execute("PRAGMA page_size").fetchone() == (page_size,)
        assert connection.execute("SELECT DISTINCT length(data) FROM entry").fetchall() == [(33,)]
        assert {row[0] % 2 for row in connection.execute("SELECT num FROM entry")} == {0, 1}


def test_side_by_side(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    found = measured("insert", "-compare", second, first)
    assert [target["path"] for target in found["targets"]] == [str(first), str(second)]
    assert [len(target["rounds"]) for target in found["targets"]] == [2, 2]
    assert all(target["checked"] for target in found["targets"])
    ratios = [
        a["rate"] / b["rate"] for a, b in zip(*(each["rounds"] for each in found["targets"]), strict=True)
    ]
    assert (found["ratio"]["min"], found["ratio"]["max"]) == pytest.approx((min(ratios), max(ratios)))
    assert list(first.iterdir()) == list(second.iterdir()) == []


def test_a_rate_is_kept_to(tmp_path: Path) -> None:
    found = measured("insert", "-rate", "300", "-clients", "3", tmp_path)
    (target,) = found["targets"]
    started = (
        sum(each["unstarted"] for each in target["rounds"]) + target["kinds"]["insert"]["latency"]["count"]
    )
    assert started == 60


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    form = ("-page-size", "8192", "-journal-mode", "delete")
    measured("read", "-keep", "-seed", "5", "-row-size", "77", *form, tmp_path)
    assert (tmp_path / NAME).exists()
    for workload in ("read", "scan"):
        found = measured(workload, "-reuse", tmp_path)
        assert [found["settings"][key] for key in ("seed", "rowSize", "rows")] == [5, 77, 2000]
        assert [found["settings"][key] for key in ("pageSize", "journalMode")] == [8192, "DELETE"]
    assert (tmp_path / NAME).exists(), "it was not made by this run"
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as connection, connection:
        connection.execute("UPDATE entry SET data = zeroblob(77) WHERE id > 10")
    for workload, what in (("read", r"row \d+ is not what was written"), ("scan", "the table is not")):
        with (
            pytest.raises(CheckFailed, match=what),
            Session(tmp_path, Settings(workload=workload, seconds=0.1), reuse=True) as session,
        ):
            session.round()


def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE entry(id INTEGER PRIMARY KEY, num INTEGER, data BLOB)")
    before = path.read_bytes()
    done = bench(*SHORT, tmp_path)
    assert done.returncode == 1
    assert "was not made by litefs bench: move it away, or choose another -name" in done.stderr
    assert path.read_bytes() == before
    for content in (b"", b"no database at all" * 100):
        path.write_bytes(content)
        with pytest.raises(BenchError, match="was not made by litefs bench"):
            database.create(path, QUICK)
        assert path.read_bytes() == content
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BenchError):
        database.create(path, QUICK)
    assert path.is_symlink()


def is_under_way(directory: Path) -> bool:
    """Whether clients insert there: what makes the database leaves no WAL."""
    with contextlib.suppress(FileNotFoundError):
        return (directory / f"{NAME}-wal").stat().st_size > 100_000
    return False


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    run = started("-duration", "60s", tmp_path)
    try:
        wait_until(lambda: is_under_way(tmp_path), 20, "a run under way")
        assert bench(*SHORT, tmp_path).stderr.endswith(
            "is in use by another litefs bench: choose another -name\n"
        )
        assert bench(*SHORT, "-name", "other.db", tmp_path).returncode == 0
    finally:
        end(run)
    assert (tmp_path / NAME).exists()
    measured("insert", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_full(tmp_path: Path) -> None:
    """An error ends the run; what was measured until then is told, and all that was acknowledged is there."""
    with Session(tmp_path, Settings(seconds=30, warmup=0)) as session:
        (client,) = children(os.getpid())
        resource.prlimit(client, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        run_rounds([session], 3, lambda: False)
        (only,) = session.target.rounds
        assert only.errors == ["disk I/O error"]
        assert only.kinds[0].latencies.count > 100
        assert session.target.checked
        assert only.seconds < 30


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal's group; the results so far are printed."""
    run = started("-duration", "60s", "-warmup", "0s", "-clients", "2", "-json", tmp_path)
    try:
        wait_until(lambda: is_under_way(tmp_path), 20, "a run under way")
        begin = time.monotonic()
        os.killpg(run.pid, signal.SIGINT)
        output, errors = run.communicate(timeout=20)
        assert time.monotonic() - begin < 10
    finally:
        end(run)
    assert run.returncode == 130, errors
    found = json.loads(output)
    assert found["interrupted"]
    (target,) = found["targets"]
    assert target["checked"]
    assert [0 < each["seconds"] < 20 for each in target["rounds"]] == [True]
    assert target["kinds"]["insert"]["latency"]["count"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_dies_ends_the_run(tmp_path: Path) -> None:
    run = started("-duration", "60s", "-clients", "2", tmp_path)
    try:
        wait_until(lambda: len(children(run.pid)) == 2, 20, "clients")
        os.kill(children(run.pid)[0], signal.SIGKILL)
        _, errors = run.communicate(timeout=20)
    finally:
        end(run)
    assert run.returncode == 1
    assert "its process ended with status -9" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_progress_bar_on_a_terminal_only(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        words = [*COMMAND, "-duration", "500ms", "-rounds", "2", str(tmp_path)]
        run = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env={**os.environ, "TERM": "xterm"}
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO when the other end is closed
            while chunk := terminal.read(4096):
                shown += chunk
        output, _ = run.communicate(timeout=20)
    assert b"round 2 of 2" in shown
    assert output.startswith(b"litefs bench insert")


def test_plots_of_a_run_and_of_its_json(tmp_path: Path) -> None:
    document = measured("insert", "-plot", tmp_path / "now.svg", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert main(["bench", "-from", str(tmp_path / "run.json"), "-plot", str(tmp_path / "later.svg")]) == 0
    sizes = [(tmp_path / name).stat().st_size for name in ("now.svg", "later.svg")]
    assert min(sizes) > 10_000
    assert max(sizes) - min(sizes) < 1000


def test_a_table_and_nothing_else(tmp_path: Path) -> None:
    """As a user has it who pipes the output into a file."""
    done = bench(*SHORT, "-compare", tmp_path, tmp_path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "litefs bench insert: WAL, synchronous=NORMAL, pages of 4096, 1 client, as fast as"
    )
    assert f"SQLite {sqlite3.sqlite_version}" in lines[1]
    assert lines[4].split() == ["rate/s", "(min", "to", "max)", "p50", "p90", "p99", "p99.9", "max"]
    assert [line.split()[0] for line in lines if line.startswith("  insert")] == ["insert", "insert"]
    assert lines[-1].startswith(f"{tmp_path.parent} / {tmp_path}: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "directory required"),
        (["fast", "."], "no such workload: fast"),
        (["insert", ".", "."], "too many arguments"),
        (["-clients", "0", "."], "-clients 0: a whole number from 1 to 1,000"),
        (["-rate", "x", "."], "-rate x: a number from 0 to"),
        (["-page-size", "1000", "."], "a power of two"),
        (["-journal-mode", "fast", "."], "one of WAL, DELETE"),
        (["-synchronous", "3", "."], "one of OFF, NORMAL"),
        (["-duration", "2", "."], "-duration: '2' is not a duration"),
        (["-duration", "0s", "."], "more than 0s, at most 5m0s"),
        (["-duration", "1h", "."], "take more rounds"),
        (["-warmup", "-1s", "."], "not negative"),
        (["-plot", "x.gif", "."], "has to end with .svg, .png, .pdf"),
        (["-plot", "/nonexistent/x.svg", "."], "no such directory"),
        (["-from", "x.json"], "needs -plot PATH"),
        (["-from", "x.json", "-plot", "x.svg", "."], "takes neither a workload nor a directory"),
        (["lag", "."], "-replica DIR is for catch-up and lag, which need it"),
        (["-replica", ".", "."], "-replica DIR is for"),
        (["lag", "-replica", ".", "-clients", "2", "."], "one client"),
        (["-pause", "true", "."], "for catch-up"),
        (["catch-up", "-replica", ".", "-pause", "true", "."], "need each other"),
        (["-reuse", "."], "for read and scan"),
        (["-name", "a/b", "."], "without a slash"),
        (["-compare", "./", "."], "the same directory"),
        (["-mode", "update", "x.db"], "one of insert, query"),
        (["-mode", "insert"], "database file required"),
        (["-mode", "insert", "-clients", "2", "x.db"], "not defined: -clients"),
        (["-mode", "insert", "-max-row-size", "0", "x.db"], "-max-row-size 0: a whole number from 1"),
        (["-mode=insert", "-journal-mode", "fast", "x.db"], "one of WAL"),
    ],
)
def test_usage_errors(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nonexistent"], "/nonexistent is no directory: give the one that the database is to be made in"),
        (["read", "-reuse", "."], "make it with -keep"),
        (["-from", "/nonexistent", "-plot", "x.svg"], "No such file"),
        (["-from", "/proc/self/status", "-plot", "x.svg"], "is not what `litefs bench -json`"),
        (["catch-up", "-replica", "/nonexistent", "."], "-replica /nonexistent is no directory"),
    ],
)
def test_errors(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 1
    assert message in capsys.readouterr().err


def test_plots_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(BenchError, match=r"pip install 'litefs-fuse\[plot\]'"):
        main_plot(tmp_path)


def main_plot(path: Path) -> None:
    from litefs.bench.plot import draw

    draw({}, path / "x.svg")


CHANGES = {
    "a row that is lost": "DELETE FROM entry WHERE id = (SELECT max(id) - 1 FROM entry)",
    "the last row that is lost": "DELETE FROM entry WHERE id = (SELECT max(id) FROM entry)",
    "a row too many": "INSERT INTO entry(num, data) SELECT max(num) + 2, data FROM entry",
    "a row twice": "INSERT INTO entry(num, data) SELECT num, data FROM entry LIMIT 1",
    "another content": "UPDATE entry SET data = zeroblob(100) WHERE id = 3",
}


@pytest.mark.parametrize("workload", ["insert", "mixed", "batch", "large"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_check_finds(change: str, workload: str, tmp_path: Path) -> None:
    settings = Settings(workload=workload, rows=20, batch=3, megabytes=0.3, clients=1)
    path = tmp_path / NAME
    database.create(path, settings)
    from litefs.bench.workloads import operations

    with contextlib.closing(database.connect(path, settings)) as connection:
        client = operations(settings, connection, 0)
        for _ in range(60):
            client.run()
        written = client.written()
        check(path, settings, [written], failed=False)
        if workload in ("insert", "large"):
            check(path, settings, [written - 1], failed=True)
            with pytest.raises(CheckFailed):
                check(path, settings, [written - 1], failed=False)
            with pytest.raises(CheckFailed):
                check(path, settings, [written + 1], failed=True)
        connection.execute(CHANGES[change])
    with pytest.raises(CheckFailed):
        check(path, settings, [written], failed=False)


def test_the_check_finds_a_malformed_database(tmp_path: Path) -> None:
    path = tmp_path / NAME
    database.create(path, QUICK)
    content = bytearray(path.read_bytes())
    content += content[-4096:]  # a page that nothing uses
    content[28:32] = (len(content) // 4096).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(CheckFailed, match="integrity_check"):
        check(path, QUICK, [0, 0], failed=False)
