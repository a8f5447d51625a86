"""``litefs restore`` over an archive in a directory."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litefs.backup.finding import moment_text
from tests.cli.support import LITEFS, inside
from tests.support.handmade import Archived
from tests.support.processes import end, spawn


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Archived]:
    archived = Archived(tmp_path / "archive", tmp_path / "work")
    archived.execute("CREATE TABLE t (n INTEGER)")
    for number in range(4):
        archived.execute(f"INSERT INTO t VALUES ({number})")
    archived.bundle()
    yield archived
    archived.close()


def test_the_newest_a_transaction_and_a_time(made: Archived, tmp_path: Path) -> None:
    source, out = tmp_path / "archive", tmp_path / "out.db"
    for flags, txid in (
        ((), 5),
        (("-txid", "3"), 3),
        (("--timestamp", moment_text(made.time(3))), 2),
        (("-timestamp", moment_text(made.time(3) + 1), "-integrity-check", "full"), 3),
    ):
        done = inside("restore", "-o", out, *flags, source)
        assert (done.status, done.err) == (0, "")
        assert f"TXID {txid:016x}" in done.out
        assert "as the primary had it" in done.out
        assert out.read_bytes() == made.copies[txid]
        out.unlink()
    done = inside("restore", "-dry-run", "-json", source)
    (shown,) = json.loads(done.out)
    assert (shown["txid"], shown["checksum"], shown["pieces"]) == (f"{5:016x}", None, 5)
    assert not out.exists()
    (shown,) = json.loads(inside("restore", "-o", out, "-json", source).out)
    assert shown["proved"] is True
    assert shown["checksum"] == f"{made.points[5].checksum:016x}"


def test_a_file_that_is_there(made: Archived, tmp_path: Path) -> None:
    source, out = tmp_path / "archive", tmp_path / "out.db"
    out.write_text("precious")
    done = inside("restore", "-o", out, source)
    assert done.status == 1
    assert "-force replaces" in done.err
    assert inside("restore", "-o", out, "-if-db-not-exists", source).status == 0
    assert out.read_text() == "precious"
    assert inside("restore", "-o", out, "-force", source).status == 0
    assert out.read_bytes() == made.copies[5]
    assert inside("restore", "-o", tmp_path / "none" / "out.db", source).status == 1


def test_several_databases(made: Archived, tmp_path: Path) -> None:
    other = Archived(tmp_path / "archive", tmp_path / "work2", "sub/b.db")
    other.execute("CREATE TABLE u (n INTEGER)")
    other.bundle()
    other.close()
    source, out = tmp_path / "archive", tmp_path / "out"
    done = inside("restore", "-o", out, source)
    assert done.status == 2
    assert "-database NAME; there are app.db, sub/b.db" in done.err
    assert inside("restore", "-o", out, "-all", source).status == 0
    assert (out / "app.db").read_bytes() == made.copies[5]
    assert (out / "sub" / "b.db").read_bytes() == other.copies[1]
    assert inside("restore", "-o", tmp_path / "b.db", "-database", "sub/b.db", source).status == 0
    done = inside("restore", "-o", tmp_path / "c.db", "-database", "c.db", source)
    assert done.status == 1
    assert "has no database c.db; it has: app.db, sub/b.db" in done.err


def test_what_cannot_be_restored_names_what_can(made: Archived, tmp_path: Path) -> None:
    source, out = tmp_path / "archive", tmp_path / "out.db"
    done = inside("restore", "-o", out, "-txid", "9", source)
    assert done.status == 1
    assert f"the nearest before is TXID {5:016x} of {moment_text(made.time(5))}" in done.err
    done = inside("restore", "-o", out, "-timestamp", "1m", source)
    assert done.status == 1
    assert f"the nearest before is TXID {5:016x}" in done.err
    done = inside("restore", "-o", out, "-timestamp", moment_text(made.time(0)), source)
    assert done.status == 1
    assert "app.db: it did not exist then" in done.err
    done = inside("restore", "-o", out, "-timeline", "3", source)
    assert "there is no timeline 3, the newest is 1" in done.err
    done = inside("restore", "-o", out, tmp_path / "nowhere")
    assert done.status == 1
    assert "holds no database" in done.err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "required: either -o PATH or -into-cluster"),
        (("-o", "x", "-as", "y"), "-as names what one database becomes"),
        (("-o", "x", "-txid", "1", "-timestamp", "1h"), "give either -txid or -timestamp"),
        (("-o", "x", "-txid", "zz"), "hexadecimal"),
        (("-o", "x", "-timestamp", "yesterday"), "write the time as"),
        (("-o", "x", "-parallelism", "0"), "a number from 1 to 64"),
        (("-o", "x", "-integrity-check", "some"), "one of none, quick, full"),
        (("-o", "x", "-txid", "1", "-all"), "not with -all"),
    ],
)
def test_flags_that_say_nothing_useful(
    made: Archived, tmp_path: Path, flags: tuple[str, ...], text: str
) -> None:
    done = inside("restore", *flags, tmp_path / "archive")
    assert done.status == 2
    assert text in done.err


def test_encrypted_and_by_the_configuration(tmp_path: Path) -> None:
    from litefs.backup.targets import TargetOptions, open_target

    key = tmp_path / "keys"
    key.write_text(os.urandom(32).hex() + "\n")
    key.chmod(0o600)
    target = open_target(str(tmp_path / "archive"), TargetOptions(key_file=str(key)))
    made = Archived(target, tmp_path / "work")
    made.execute("CREATE TABLE t (n INTEGER)")
    made.bundle()
    made.close()
    out = tmp_path / "out.db"
    assert inside("restore", "-o", out, tmp_path / "archive").status == 1
    assert inside("restore", "-o", out, "-key-file", key, tmp_path / "archive").status == 0
    assert out.read_bytes() == made.copies[1]
    config = tmp_path / "litefs.yml"
    config.write_text(
        f"fuse: {{dir: {tmp_path}/mnt}}\ndata: {{dir: {tmp_path}/data}}\n"
        f"lease: {{type: static, candidate: true, advertise-url: 'http://localhost:20202'}}\n"
        f"backup: {{type: file, path: {tmp_path}/archive, encryption: {{key-file: {key}}}}}\n"
    )
    out.unlink()
    assert inside("restore", "-o", out, "-config", config).status == 0
    assert out.read_bytes() == made.copies[1]


def test_following_until_told_to_stop(made: Archived, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    line = [
        *LITEFS,
        "restore",
        "-follow",
        "-follow-interval",
        "50ms",
        "-o",
        str(out),
        str(tmp_path / "archive"),
    ]
    for _ in range(2):
        process = spawn(line, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert f"TXID {made.txid:016x}, followed at" in first
            made.execute("INSERT INTO t VALUES (9)")
            made.bundle()
            assert process.stdout.readline() == f"app.db: TXID {made.txid:016x}\n"
            with closing(sqlite3.connect(out)) as db:
                assert db.execute("SELECT max(n) FROM t").fetchone() == (9,)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            end(process)
    assert inside("restore", "-follow", "-o", out, "-txid", "1", tmp_path / "archive").status == 2
    other = tmp_path / "other.db"
    other.write_text("precious")
    done = inside("restore", "-follow", "-o", other, tmp_path / "archive")
    assert done.status == 1
    assert "was not followed" in done.err
