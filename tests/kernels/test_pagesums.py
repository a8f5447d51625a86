"""Page checksums and the mapped array: against a database kept as a dict of pages, and across processes."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from litefs._core import pagesums
from litefs._core.pagesums import HEADER_SIZE, PageSums
from tests.kernels import reference_crc64 as reference

FLAG = 1 << 63
PAGE = 512


def fresh(pages: int, page_size: int = PAGE) -> tuple[bytearray, PageSums]:
    buffer = bytearray(HEADER_SIZE + 8 * pages)
    sums = PageSums(buffer)
    sums.format(page_size)
    return buffer, sums


def numbers(*pgnos: int) -> array[int]:
    return array("I", pgnos)


def u64(data: bytes) -> list[int]:
    return list(memoryview(data).cast("Q"))


def test_golden_page_checksums() -> None:
    assert pagesums.page_checksum(1, b"\1" * 512) == 0xE4E4AAA102377EEE
    assert pagesums.page_checksum(2, b"\2" * 512) == 0xC9C9554231044DDD


@settings(deadline=None)
@given(pgno=st.integers(1, 2**32 - 1), page=st.binary(min_size=512, max_size=512))
def test_page_checksum_equals_the_reference(pgno: int, page: bytes) -> None:
    assert pagesums.page_checksum(pgno, page) == reference.page_checksum(pgno, page)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_page_checksums_leave_out_the_lock_page(page_size: int) -> None:
    lock = reference.lock_pgno(page_size)
    data = os.urandom(3 * page_size)
    pages = [data[n * page_size : (n + 1) * page_size] for n in range(3)]
    found = u64(pagesums.page_checksums(lock - 1, data, page_size))
    assert found == [
        reference.page_checksum(lock - 1, pages[0]),
        0,
        reference.page_checksum(lock + 1, pages[2]),
    ]


@pytest.mark.parametrize(
    ("first", "length", "page_size"),
    [(0, 512, 512), (1, 511, 512), (2**32 - 1, 1024, 512), (1, 0, 0), (1, 600, 600), (1, 131072, 131072)],
)
def test_page_checksums_refuse_what_is_no_page(first: int, length: int, page_size: int) -> None:
    with pytest.raises(ValueError, match="page"):
        pagesums.page_checksums(first, bytes(length), page_size)


@pytest.mark.parametrize(
    ("pgnos", "length", "reason"),
    [
        ([0], 512, "page 0 does not follow"),
        ([2, 2], 1024, "page 2 does not follow page 2"),
        ([3, 2], 1024, "page 2 does not follow page 3"),
        ([1, 2], 512, "do not fit"),
        ([reference.lock_pgno(PAGE)], 512, "lock page"),
    ],
)
def test_checksums_of_refuses_bad_numbers(pgnos: list[int], length: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pagesums.checksums_of(numbers(*pgnos), bytes(length), PAGE)


def test_replace_changes_the_page_size_and_every_checksum() -> None:
    _, sums = fresh(5)
    sums.commit(numbers(1, 2, 3, 4), struct.pack("=4Q", *range(11, 15)), 4, 7, FLAG | 4, 1, 5)
    sums.durable_txid = 6
    new = struct.pack("=2Q", 21, 22)
    sums.replace(1024, new, 8, FLAG | 3, 2, 6)
    assert sums.snapshot() == (8, FLAG | 3, 2, 1024, 2, 6)
    assert u64(sums.array(1, 5)) == [21, 22, 0, 0, 0]
    assert sums.durable_txid == 6
    for size, refused, reason in (
        (1000, new, "page size 1000"),
        (512, new + b"x", "17 bytes are not whole"),
        (512, memoryview(b"x" + new)[1:9], "aligned"),
        (512, bytes(48), "not within 1..5"),
    ):
        with pytest.raises(ValueError, match=reason):
            sums.replace(size, refused, 9, FLAG, 3, 0)
    assert sums.snapshot()[0] == 8


def test_arrays_that_are_not_aligned_are_refused() -> None:
    _, sums = fresh(2)
    pgnos, new = numbers(1, 2).tobytes(), bytes(16)
    with pytest.raises(ValueError, match="page numbers are not aligned"):
        sums.post(memoryview(b"\0" + pgnos)[1:], new, 2)
    with pytest.raises(ValueError, match="checksums are not aligned"):
        sums.post(pgnos, memoryview(b"\0" + new)[1:], 2)


class Database(RuleBasedStateMachine):
    """Random transactions on the array and on a dict of pages."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer, self.sums = fresh(40)
        self.pages: dict[int, bytes] = {}
        self.txid = 0
        self.total = 0

    @rule(commit=st.integers(0, 40), dirty=st.sets(st.integers(1, 40), max_size=12), seed=st.integers(0, 255))
    def transaction(self, commit: int, dirty: set[int], seed: int) -> None:
        wanted = {pgno for pgno in dirty if pgno <= commit} | set(range(len(self.pages) + 1, commit + 1))
        pgnos = numbers(*sorted(wanted))
        images = [bytes([seed, pgno]) * (PAGE // 2) for pgno in pgnos]
        before = bytes(self.buffer)
        post, new = self.sums.preview(pgnos, b"".join(images), commit)
        assert self.buffer == before
        self.pages |= dict(zip(pgnos, images, strict=True))
        self.pages = {pgno: page for pgno, page in self.pages.items() if pgno <= commit}
        assert post == reference.database_checksum(self.pages, PAGE)
        self.txid += 1
        self.total = post
        self.sums.commit(pgnos, new, commit, self.txid, post, 1000 + self.txid, post ^ self.txid)

    @invariant()
    def same(self) -> None:
        time = 1000 + self.txid if self.txid else 0
        digest = self.total ^ self.txid
        assert self.sums.snapshot() == (self.txid, self.total, time, PAGE, len(self.pages), digest)
        for pgno in range(1, 41):
            page = self.pages.get(pgno)
            assert self.sums.get(pgno) == (0 if page is None else reference.page_checksum(pgno, page))
            assert page is None or self.sums.matches(pgno, page)
            assert not self.sums.matches(pgno, b"\xee" * PAGE)
        assert self.sums.recompute_total() == (self.total or FLAG)

    def teardown(self) -> None:
        self.sums.release()


TestDatabase = Database.TestCase
TestDatabase.settings = settings(max_examples=25, stateful_step_count=8, deadline=None)


def test_layout_is_the_documented_one() -> None:
    buffer, sums = fresh(3, 4096)
    images = os.urandom(2 * 4096)
    post, new = sums.preview(numbers(1, 2), images, 2)
    sums.commit(numbers(1, 2), new, 2, 7, post, -5, 99)
    sums.durable_txid, sums.synced_txid, sums.clean, sums.damaged = 5, 6, True, True
    sums.database_stat = (8192, 11, 12)
    sums.set_wal(0xFFFFFFFF, 2, 3)
    header = struct.unpack_from("<8sIIQQQqQQI4xqqqIII4xI4xQ", buffer)
    seq = header[3]
    assert seq > 0
    assert seq % 2 == 0
    assert header == (
        b"LFSUMS1\0", 4096, 2, seq, 7, post, -5, 5, 6, 1, 8192, 11, 12, 0xFFFFFFFF, 2, 3, 1, 99,
    )  # fmt: skip
    assert bytes(buffer[4096 : 4096 + 24]) == new + bytes(8)
    assert (sums.durable_txid, sums.synced_txid, sums.clean, sums.damaged) == (5, 6, True, True)
    assert (sums.database_stat, sums.wal(), sums.wal_salt1) == (
        (8192, 11, 12),
        (0xFFFFFFFF, 2, 3),
        0xFFFFFFFF,
    )
    sums.format(512)
    assert sums.formatted
    assert not any(buffer[24:])
    assert not PageSums(bytearray(HEADER_SIZE)).formatted
    struct.pack_into("<I", buffer, 8, 513)
    assert not sums.formatted


def test_pages_beyond_the_lock_page_may_skip_it() -> None:
    lock = reference.lock_pgno(65536)
    _, sums = fresh(lock + 2, 65536)
    sums.load(1, bytes(8 * (lock + 2)))
    sums.reset(lock - 1, 1, FLAG, 0, 0)
    pages = os.urandom(2 * 65536)
    around = numbers(lock + 1, lock + 2)
    post, new = sums.preview(around, pages, lock + 2)
    sums.commit(around, new, lock + 2, 2, post, 0, 0)
    assert sums.get(lock) == 0
    assert post == sums.recompute_total() == FLAG | u64(new)[0] ^ u64(new)[1]


def test_refused_transactions_change_nothing() -> None:
    buffer, sums = fresh(4)
    post, new = sums.preview(numbers(1, 2), bytes(2 * PAGE), 2)
    sums.commit(numbers(1, 2), new, 2, 1, post, 0, 0)
    before = bytes(buffer)
    with pytest.raises(ValueError, match="only 1 of the pages 3 to 4"):
        sums.preview(numbers(1, 4), bytes(2 * PAGE), 4)
    with pytest.raises(ValueError, match="page 3 lies beyond the database's 2 pages"):
        sums.preview(numbers(3), bytes(PAGE), 2)
    with pytest.raises(ValueError, match="do not fit"):
        sums.post(numbers(1), new, 2)
    with pytest.raises(ValueError, match="5 pages, but room for 4"):
        sums.commit(numbers(3, 4, 5), bytes(24), 5, 2, FLAG, 0, 0)
    with pytest.raises(ValueError, match="not within"):
        sums.load(4, bytes(16))
    with pytest.raises(ValueError, match="not within"):
        sums.array(0, 1)
    with pytest.raises(ValueError, match="room for 4"):
        sums.reset(5, 1, FLAG, 0, 0)
    assert buffer == before
    assert sums.get(0) == sums.get(5) == 0
    assert not sums.matches(5, bytes(PAGE))
    sums.format(0)
    with pytest.raises(ValueError, match="page size"):
        sums.preview(numbers(1), bytes(PAGE), 1)


def test_load_and_reset_make_the_same_state_as_transactions() -> None:
    _, sums = fresh(6)
    images = os.urandom(6 * PAGE)
    everything = numbers(*range(1, 7))
    post, new = sums.preview(everything, images, 6)
    sums.commit(everything, new, 6, 3, post, 9, 8)
    _, other = fresh(6)
    other.load(1, new[:32])
    other.load(5, new[32:])
    other.reset(6, 3, post, 9, 8)
    assert other.recompute_total() == post
    assert (other.snapshot(), other.array(1, 6)) == (sums.snapshot(), new)
    other.reset(4, 4, FLAG, 9, 0)
    assert other.array(1, 6) == new[:32] + bytes(16)


def test_buffers_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="too small"):
        PageSums(bytearray(HEADER_SIZE - 1))
    with pytest.raises(ValueError, match="not aligned"):
        PageSums(memoryview(bytearray(HEADER_SIZE + 9))[1:])
    with pytest.raises(BufferError):
        PageSums(bytes(HEADER_SIZE))


def test_release_lets_the_map_close_and_refuses_use() -> None:
    area = mmap.mmap(-1, HEADER_SIZE + 4096)
    sums = PageSums(area)
    sums.format(PAGE)
    with pytest.raises(BufferError):
        area.close()
    sums.release()
    sums.release()
    area.close()
    for use in (
        lambda: sums.txid,
        lambda: sums.get(1),
        lambda: sums.snapshot(),
        lambda: sums.format(PAGE),
        lambda: sums.preview(numbers(1), bytes(PAGE), 1),
        lambda: sums.commit(b"", b"", 0, 1, FLAG, 0, 0),
    ):
        with pytest.raises(ValueError, match="released"):
            use()


def test_a_writer_killed_inside_an_update_is_noticed_and_overwritten() -> None:
    buffer, sums = fresh(1)
    sums.commit(b"", b"", 0, 1, FLAG, 5, 1)
    struct.pack_into("<Q", buffer, 16, struct.unpack_from("<Q", buffer, 16)[0] + 1)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="stopped inside"):
        sums.snapshot()
    assert time.monotonic() - start < 5
    with pytest.raises(TimeoutError):
        sums.wal()
    sums.commit(b"", b"", 0, 2, FLAG, 6, 2)
    assert sums.snapshot() == (2, FLAG, 6, PAGE, 0, 2)


INTERRUPTED = """
import ctypes, faulthandler, mmap, signal, sys
from litefs._core.pagesums import HEADER_SIZE, PageSums

method, place = sys.argv[1], int(sys.argv[2])
page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 3 * page)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
# The header's first `place` bytes end a page of memory; the fields after them lie in the next one.
header = memoryview(area)[page - place : 2 * page - place + HEADER_SIZE]
reader, writer = PageSums(header), PageSums(header)
flag = 1 << 63

def write(n):
    writer.commit(b"", b"", 0, n, flag | n * 3, n * 7, n * 11)
    writer.set_wal(n, n * 5, n * 9)

def protect(flags):
    if libc.mprotect(ctypes.c_void_p(address + page), page, flags):
        sys.exit("mprotect failed")

interruptions = 0

@ctypes.CFUNCTYPE(None, ctypes.c_int)
def interrupt(signal_number):
    global interruptions
    protect(mmap.PROT_READ | mmap.PROT_WRITE)
    interruptions += 1
    write(2)

writer.format(512)
write(1)
faulthandler.disable()
libc.signal.restype = ctypes.c_void_p
libc.signal(signal.SIGSEGV, interrupt)
faulthandler.dump_traceback_later(20, exit=True)
protect(0)
found = getattr(reader, method)()
print(interruptions, *found)
"""


@pytest.mark.parametrize(
    ("method", "place", "expected"),
    [
        ("snapshot", 32, (2, FLAG | 6, 14, PAGE, 0, 22)),
        ("snapshot", 40, (2, FLAG | 6, 14, PAGE, 0, 22)),
        ("wal", 104, (2, 10, 18)),
    ],
)
def test_a_read_with_a_whole_update_inside_it_starts_again(
    method: str, place: int, expected: tuple[int, ...]
) -> None:
    """No chance decides: half of the header lies in memory that cannot be read, so that the reader stops
    between two fields, and the update happens in the handler of the signal that it gets.
    """
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, method, str(place)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert tuple(map(int, done.stdout.split())) == (1, *expected)


WRITER = """
import mmap, sys
from litefs._core.pagesums import PageSums
with open(sys.argv[1], "r+b") as file:
    area = mmap.mmap(file.fileno(), 0)
sums = PageSums(area)
flag = 1 << 63
print("ready", flush=True)
for n in range(1, 10**9):
    sums.commit(b"", b"", 0, n, flag | n * 3, n * 7, n * 5)
    sums.set_wal(n & 0xFFFFFFFF, n * 5 & 0xFFFFFFFF, n * 9 & 0xFFFFFFFF)
"""


def test_snapshots_are_consistent_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    path.write_bytes(bytes(HEADER_SIZE + 4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        sums = PageSums(area)
        try:
            sums.format(PAGE)
            writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"ready\n"
                # A busy machine runs the two in turns and shows few states; so count states, not seconds.
                seen: set[int] = set()
                deadline = time.monotonic() + 30
                while len(seen) < 300 and time.monotonic() < deadline:
                    txid, checksum, timestamp, page_size, page_count, digest = sums.snapshot()
                    if txid:
                        assert (checksum, timestamp, page_size, page_count, digest) == (
                            FLAG | txid * 3,
                            txid * 7,
                            PAGE,
                            0,
                            txid * 5,
                        )
                        seen.add(txid)
                    one, five, nine = sums.wal()
                    assert (five, nine) == (one * 5 & 0xFFFFFFFF, one * 9 & 0xFFFFFFFF)
            finally:
                writer.kill()
                writer.communicate()
            assert len(seen) == 300
        finally:
            sums.release()
