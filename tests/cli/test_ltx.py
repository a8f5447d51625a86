"""``litefs ltx`` on the data directory of a node, while it runs and after it stopped."""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.store.segments import RECORD_HEAD, SEGMENT_HEADER_SIZE, SegmentMap, record_hash
from tests.cli.support import LITEFS, SECONDS, Done, inside
from tests.support.node import Node
from tests.support.processes import Client

COMMITS = 5


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a node that stopped after COMMITS transactions, verified while it ran."""
    node = Node(tmp_path_factory.mktemp("ltx"), "primary")
    try:
        node.start()
        with Client("sql", "sqlite3") as sql:
            sql.call("open", path=node.path("app.db"))
            sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(x)"])
            rows = ["INSERT INTO t VALUES(randomblob(100))"] * (COMMITS - count(node.data))
            sql.call("script", statements=rows)
            running = inside("ltx", "verify", "-config", node.config)
            assert (running.status, running.err) == (0, "")
            assert running.out.startswith(f"app.db: {COMMITS} sound records, ")
        assert node.stop() == 0
    finally:
        node.discard()
    return node.data


def count(data: Path) -> int:
    return sum(line.startswith("0") for line in ltx(data, "list").out.splitlines())


def ltx(data: Path, action: str, *arguments: str) -> Done:
    return inside("ltx", action, "-data", data, *arguments)


def segment(data: Path) -> Path:
    (path,) = data.glob("dbs/app.db/log/*.seg")
    return path


@pytest.fixture
def data(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "data", ignore=shutil.ignore_patterns("*.sock")))


def test_list_show_and_verify(data: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    listed = ltx(data, "list").out.splitlines()
    assert listed[0] == "app.db:"
    txids = [f"{number:016x}" for number in range(1, COMMITS + 1)]
    assert [line.split()[0] for line in listed[2:]] == txids
    verified = ltx(data, "verify", "-name", "app.db")
    assert verified.status == 0
    checksum = listed[-1].split()[-1]
    assert verified.out.endswith(f", {txids[0]} to {txids[-1]}/{checksum}\n")
    shown = ltx(data, "show", "-name", "app.db", "-txid", "2").out
    assert f"transaction:     {txids[1]}\n" in shown
    assert f"checksum before: {listed[2].split()[-1]}\n" in shown
    last = ltx(data, "show").out.splitlines()
    assert f"checksum after:  {checksum}" in last
    pages = int(next(line for line in last if line.startswith("pages in it:")).split()[-1])
    assert pages == len(last) - last.index(next(line for line in last if line.startswith("PAGE"))) - 1 > 0
    for arguments, message in (
        (("-name", "b.db"), "database not found in"),
        (("-name", "app.db", "-txid", "99"), "the log does not hold 99; `litefs ltx list`"),
    ):
        missing = ltx(data, "show", *arguments)
        assert missing.status == 1
        assert message in missing.err
    assert inside("ltx", "show", "-data", data, "-txid", "x").status == 2
    closed = subprocess.run(
        f"{shlex.join(LITEFS)} ltx list -data {data} | true",
        shell=True, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert closed.stderr == ""
    empty = inside("ltx", "list", "-data", tmp_path)
    assert (empty.status, empty.out) == (1, "")
    assert "is not a data directory of LiteFS" in empty.err
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before, "nothing is written"


def test_files(data: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.ltx", tmp_path / "bad.ltx"
    with SegmentMap(segment(data)) as log:
        extent = log.extent_at(SEGMENT_HEADER_SIZE, verify=True)
        assert extent is not None
        body = bytes(log.view[extent.body_offset : extent.body_offset + extent.size])
    good.write_bytes(body)
    bad.write_bytes(body[:150] + bytes([body[150] ^ 1]) + body[151:])
    done = inside("ltx", "verify", good, bad)
    assert (done.status, done.out) == (1, f"{good}: sound, {1:016x}\n")
    assert done.err.startswith(f"{bad}: DAMAGED: ")
    row = inside("ltx", "list", good).out.splitlines()[1].split()
    assert (row[0], row[-2:]) == (f"{1:016x}", [f"{extent.post_apply:016x}", str(good)])
    assert f"size:            {len(body)} bytes\n" in inside("ltx", "show", good).out
    assert (
        inside("ltx", "verify", tmp_path / "none.ltx").err
        == f"ERROR: cannot read {tmp_path}/none.ltx: No such file or directory\n"
    )
    assert inside("ltx", "verify", "-data", data, good).status == 2
    assert inside("ltx", "mend").status == 2


def damaged(data: Path, change: Callable[[bytearray], None]) -> str:
    """What verify says, with status 1, of a log whose bytes were changed."""
    path = segment(data)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    done = ltx(data, "verify")
    assert done.status == 1
    return done.err


def test_verify_names_the_first_bad_record(data: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    with SegmentMap(segment(data)) as log:
        extents = list(log.extents(verify=True))
    third = extents[2]
    at = random.Random(seed).randrange(third.body_offset, third.body_offset + third.size)

    def flip(content: bytearray) -> None:
        content[at] ^= 0x10

    said = damaged(data, flip)
    assert f"app.db: DAMAGED: after record {2:016x}: " in said
    assert f"offset {third.offset}" in said
    assert ltx(data, "verify").out.startswith("app.db: 2 sound records, ")


def test_verify_reads_the_pages_too(data: Path) -> None:
    """A record that was written wrong: the log's hash of it is right, what it holds is not."""
    with SegmentMap(segment(data)) as log:
        third = list(log.extents(verify=True))[2]

    def write_wrong(content: bytearray) -> None:
        content[third.body_offset + 120] ^= 1  # in its first page
        body = bytes(content[third.body_offset : third.body_offset + third.size])
        RECORD_HEAD.pack_into(content, third.offset, third.size, record_hash(body, third.size))

    said = damaged(data, write_wrong)
    assert f"app.db: DAMAGED: record {3:016x} at {segment(data)}, offset {third.offset}: " in said


def test_verify_misses_what_was_cut_off(data: Path) -> None:
    with SegmentMap(segment(data)) as log:
        last = list(log.extents(verify=True))[-1]

    def cut(content: bytearray) -> None:
        content[last.offset :] = bytes(len(content) - last.offset)

    said = damaged(data, cut)
    assert f"after record {COMMITS - 1:016x}: " in said
    assert f"{COMMITS:016x} was published" in said
    segment(data).unlink()
    gone = ltx(data, "verify")
    assert gone.status == 1
    assert "no log, though the database is at" in gone.err
