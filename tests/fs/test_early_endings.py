"""A commit frame whose header, or first piece, is already valid over what the file holds behind it.

SQLite writes the header of a frame, then its page. Preallocated space is zeros, and a page whose 32-bit words
have nothing but their highest byte, as those of the free list, has the checksum of zeros in one case of 65,536.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from litefs.store.paths import DataDir
from tests.fs.harness import python, serving
from tests.fs.replay import replay

WRITER = """
import json, os, sqlite3, struct, sys
from litefs._core.walcursor import build_frames, wal_checksum
path, steps = sys.argv[1], sys.argv[2]
db = sqlite3.connect(path, isolation_level=None)
for statement in ("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0", "CREATE TABLE t(x)",
                  "INSERT INTO t VALUES(1)"):
    db.execute(statement)
wal = os.open(path + "-wal", os.O_RDWR)
index = open(path + "-shm", "rb").read(48)
frames, pages = struct.unpack_from("=II", index, 16)
page_size, frame_size = 4096, 4120
salts = struct.unpack(">II", os.pread(wal, 8, 16))
tip = 32 + frames * frame_size
chain = struct.unpack(">II", os.pread(wal, 8, tip - frame_size + 16))
big = os.pread(wal, 4, 0)[3] & 1
assert os.pread(wal, frame_size, tip) == bytes(frame_size), "space is allocated ahead"

def colliding(byte):
    for second in range(byte + 4, page_size, 4):
        page = bytearray(page_size)
        page[byte] = page[second] = 0x80
        if wal_checksum(page, 1, 2, big) == wal_checksum(bytes(page_size), 1, 2, big):
            return bytes(page)

def frame(pgno, image, chain, commit):
    data, *chain = build_frames(struct.pack("=I", pgno), image, page_size, *salts, *chain, commit, big)
    return data, chain

def outcome(write, *arguments):
    try:
        write(*arguments)
    except OSError as error:
        return error.errno
    return 0

def position():
    return open(path + "-pos").read().strip()

# which byte of a word is its highest one depends on the WAL's byte order
page = colliding(0 if big else 3)
data, chain = frame(pages + 1, page, chain, pages + 1)
seen = [position()]
pwrite = lambda data, offset: os.pwrite(wal, data, offset)
told = []
if steps == "whole":
    for start, end in ((0, 24), (24, 1000), (1000, frame_size)):
        told.append(outcome(pwrite, data[start:end], tip + start))
        seen.append(position())
elif steps == "header":
    told.append(outcome(pwrite, data[:24], tip))
    seen.append(position())
    db.execute("INSERT INTO t VALUES(2)")
    seen.append(position())
elif steps == "behind":
    told.append(outcome(pwrite, data[:24], tip))
    behind, _ = frame(pages + 1, bytes(page_size), chain, pages + 1)
    told.append(outcome(pwrite, behind, tip + frame_size))
    seen.append(position())
print(json.dumps({"told": told, "seen": seen, "pgno": pages + 1, "page": page.hex()}))
sys.stdout.flush()
os._exit(0)  # without SQLite closing
"""


def write(tmp_path: Path, steps: str) -> tuple[dict[str, Any], dict[int, bytes]]:
    """What the client saw, and the pages that the log has."""
    with serving(tmp_path) as fs:
        told = json.loads(python(WRITER, fs.mount / "a.db", steps))
        _, pages, _ = replay(DataDir(fs.data).database_dir("a.db").log)
        return told, pages


def test_the_page_that_its_client_writes_is_logged_not_what_lay_there(tmp_path: Path) -> None:
    client, pages = write(tmp_path, "whole")
    assert client["told"] == [0, 0, 0]
    before, header, piece, whole = client["seen"]
    assert before == header == piece != whole
    assert pages[client["pgno"]].hex() == client["page"]


def test_a_header_whose_page_never_comes_commits_nothing(tmp_path: Path) -> None:
    client, pages = write(tmp_path, "header")
    before, header, after = client["seen"]
    assert client["told"] == [0]
    assert before == header != after
    assert client["pgno"] not in pages


def test_a_commit_behind_a_frame_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    client, pages = write(tmp_path, "behind")
    assert client["told"] == [0, 5]
    assert len(set(client["seen"])) == 1
    assert client["pgno"] not in pages
