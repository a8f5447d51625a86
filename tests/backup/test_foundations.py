"""Names, bundles and a timeline on a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from litefs.backup import bundle
from litefs.backup.archive import Archive, Head, Start, databases, timelines
from litefs.backup.directory import DirectoryTarget
from litefs.backup.layout import Layout, parse_ltx_name, parse_prefix, prefix_of
from litefs.errors import ArchiveCorrupt, ArchiveMissing
from litefs.store.segments import record_hash
from litefs.types import CHECKSUM_FLAG, START, Point


def point(txid: int, body: bytes) -> Point:
    return Point(txid, CHECKSUM_FLAG | txid, record_hash(body, len(body)))


@pytest.mark.parametrize("name", ["app.db", "a/b c.db", "~t2", "ü", "..", "%2F", "a~2Fb"])
def test_names_come_back_and_are_one_safe_component(name: str) -> None:
    for number in (1, 2, 17):
        component = prefix_of(name, number)
        assert parse_prefix(component) == (name, number)
        assert "/" not in component
        assert component.strip(".")
    assert prefix_of(name, 2) != prefix_of(f"{name}~t2")


def test_keys_of_levels_are_those_of_litestream() -> None:
    assert Layout().level("p/app.db", 9) == "p/app.db/ltx/9/"
    assert Layout(flat=True).level("app.db", 9) == "app.db/0009/"
    assert parse_ltx_name("0000000000000002-000000000000000a.ltx") == (2, 10)
    for name in (
        "0000000000000002-000000000000000A.ltx",
        "2-3.ltx",
        "0000000000000002-000000000000000a.ltx.tmp",
    ):
        assert parse_ltx_name(name) is None


def test_a_bundle_comes_back_and_every_changed_byte_of_its_front_is_found() -> None:
    bodies = [b"one", b"second", b"3"]
    records = [(point(5 + number, body), 1000 + number, body) for number, body in enumerate(bodies)]
    packed = bundle.pack(point(4, b"x"), records)
    found = bundle.parse(packed)
    assert found.last == records[-1][0]
    assert [packed[e.offset : e.offset + e.size] for e in found.entries] == bodies
    for at in range(bundle.front_size(3)):
        broken = bytearray(packed)
        broken[at] ^= 1
        with pytest.raises(ArchiveCorrupt):
            bundle.parse(bytes(broken))


def test_a_timeline_is_one_history(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "archive")
    archive = Archive(target, prefix_of("app.db"), "app.db")
    assert archive.start() is None
    assert archive.claim("node", 1)
    assert not archive.claim("other", 2)
    start = Start(START, 1, "new", "node")
    assert archive.begin(start)
    assert archive.begin(start), "who repeats what was done is told that it was"
    assert not archive.begin(Start(START, 1, "new", "other"))
    assert archive.start() == start
    one, two = point(1, b"one"), point(2, b"two")
    assert archive.append(1, bundle.pack(START, [(one, 10, b"one")]))
    assert not archive.append(1, bundle.pack(START, [(one, 10, b"one"), (two, 11, b"two")]))
    assert archive.append(2, bundle.pack(one, [(two, 12, b"two")]))
    found = list(archive.bundles(1))
    assert [b.last for b in found] == [one, two]
    assert archive.records(found[1]) == [b"two"]
    assert [first for first, _, _ in archive.bundle_names(1)] == [2]
    archive.set_head(Head(2, 99))
    assert archive.head() == Head(2, 99)
    key = archive.write(0, 1, 1, 1700000000123, [b"a", b"b"])
    assert os.stat(target.root / key).st_mtime_ns == 1700000000123 * 1_000_000
    assert [(f.min_txid, f.size, f.modified) for f in archive.files(0)] == [(1, 2, 1700000000123)]
    with pytest.raises(ArchiveMissing):
        target.read("nothing")
    assert [a.number for a in timelines(target, "app.db")] == [1]
    assert databases(target) == ["app.db"]
    archive.append(3, bundle.pack(point(2, b"other"), [(point(3, b"x"), 13, b"x")]))
    with pytest.raises(ArchiveCorrupt, match="does not follow"):
        list(archive.bundles(1))
