"""Several records into one: equal to applying them one by one, whatever the pieces, sizes and formats."""

from __future__ import annotations

import io
import random
import struct
from array import array
from collections.abc import Sequence

import pytest

from litefs.errors import ArchiveCorrupt, ChecksumMismatch, FormatError
from litefs.ltx import Decoder, Encoder, Header, decode, encode, lock_pgno
from litefs.ltx.compactor import compact, compact_records
from tests.kernels import reference_ltx as reference
from tests.kernels.reference_crc64 import FLAG
from tests.support.histories import History, Step, applied

PAGE = 512


def opened(records: Sequence[bytes], piece: int = 1 << 20) -> list[Decoder]:
    files = [io.BytesIO(record) for record in records]
    return [Decoder(lambda n, f=file: f.read(min(n, piece))) for file in files]


def merged(records: Sequence[bytes], piece: int = 1 << 20) -> bytes:
    return b"".join(compact(opened(records, piece)))


def apply(image: bytes, record: bytes) -> bytes:
    header = Header.unpack(record)
    return applied(image, header.page_size, reference.decode(record)[0], header.commit)


def as_litestream(step: Step) -> bytes:
    """The record without checksums and with an LZ4 frame per page, as ltx 0.5.1 wrote it."""
    pages, _, _ = reference.decode(step.record)
    old = Header.unpack(step.record)
    header = Header(
        2, old.page_size, old.commit, old.min_txid, old.max_txid, old.timestamp, 0, 4096, 99, 1, 2
    )
    return reference.encode_legacy(header.pack(), [n for n, _ in pages], b"".join(p for _, p in pages), 0)


@pytest.mark.parametrize("seed", range(25))
def test_one_record_does_what_all_did(seed: int) -> None:
    rng = random.Random(seed)
    history = History(seed, rng.choice([512, 1024, 4096]))
    steps = history.add(rng.randint(2, 40))
    first = rng.randint(1, len(steps))
    image = steps[first - 2].image if first > 1 else b""
    records = [step.record for step in steps[first - 1 :]]
    one = merged(records, rng.choice([1, 100, 1 << 20]))
    last = steps[-1]
    assert Header.unpack(one) == Header(
        2, history.page_size, len(last.pages), first, last.point.txid, last.time, 0, wal_offset=32
    )
    assert apply(image, one) == last.image
    assert decode(one).trailer.post_apply == 0
    assert b"".join(compact_records(records, last.time)) == one
    mixed = [rng.choice([step.record, as_litestream(step)]) for step in steps[first - 1 :]]
    assert decode(merged(mixed)).images == decode(one).images
    reference.decode(merged(mixed))  # blocks only
    cut = rng.randint(1, len(records))
    halves = [merged(part) for part in (records[:cut], records[cut:]) if part]
    assert merged(halves) == one


def test_inputs_may_overlap() -> None:
    history = History(5)
    records = [step.record for step in history.add(9)]
    early, late = merged(records[:6]), merged(records[3:])
    assert apply(b"", merged([early, late])) == history.steps[-1].image


def test_what_does_not_follow_is_refused() -> None:
    records = [step.record for step in History(6).add(5)]
    for wrong in (
        [records[0], records[2]],
        [records[1], records[0]],
        [merged(records[:3]), records[1]],
        [records[1], records[1]],
    ):
        with pytest.raises(ArchiveCorrupt, match="do not follow"):
            compact(opened(wrong))
    with pytest.raises(ValueError, match="nothing"):
        compact([])


def test_two_histories_are_refused_where_records_have_checksums() -> None:
    one, other = History(7).add(3), History(8).add(3)
    with pytest.raises(ArchiveCorrupt, match="transaction 0000000000000002 follows checksum"):
        merged([one[0].record, other[1].record])


def test_page_sizes_do_not_mix() -> None:
    history = History(9)
    history.add(2)
    history.resize(4096)
    with pytest.raises(ArchiveCorrupt, match="page size changes from 512 to 4096 at transaction"):
        merged([step.record for step in history.steps])


def test_pages_beyond_the_end_are_gone_for_good() -> None:
    """Page 4 is cut off and must be written again to be there: otherwise a full record lacks it."""

    def record(txid: int, commit: int, *pgnos: int) -> bytes:
        header = Header(2, PAGE, commit, txid, txid, txid, 0, 32)
        return encode(header, array("I", pgnos), bytes([txid]) * PAGE * len(pgnos), 0)

    start, short = record(1, 4, 1, 2, 3, 4), record(2, 2, 1)
    assert decode(merged([start, short])).pgnos == bytes(array("I", [1, 2]))
    grown = merged([start, short, record(3, 4, 3, 4)])
    assert decode(grown).images == b"\2" * PAGE + b"\1" * PAGE + b"\3" * 2 * PAGE
    with pytest.raises(FormatError, match=r"missing|must hold all 4"):
        merged([start, short, record(3, 4, 3)])
    with pytest.raises(FormatError, match=r"missing|must hold all 4"):
        b"".join(compact_records([start, short, record(3, 4, 3)], 3))
    assert decode(merged([record(2, 5, 5), record(3, 2, 1), record(4, 5, 3)])).pgnos == bytes(
        array("I", [1, 3])
    )


def test_a_removed_database_and_one_after_it() -> None:
    gone = encode(Header(2, PAGE, 0, 2, 2, 2, 0, 32), b"", b"", 0)
    start = encode(Header(2, PAGE, 1, 1, 1, 1, 0, 32), array("I", [1]), bytes(PAGE), 0)
    again = encode(Header(2, PAGE, 1, 3, 3, 3, 0, 32), array("I", [1]), b"x" * PAGE, 0)
    assert decode(merged([start, gone])).header.commit == 0
    assert decode(merged([start, gone, again])).images == b"x" * PAGE


def test_damage_in_any_input_is_found() -> None:
    """But what LZ4 unpacks to the same pages: the checksum is of these."""
    records = [step.record for step in History(10).add(3)]
    whole = decode(merged(records))
    rng, missed = random.Random(11), 0
    for _ in range(300):
        which = rng.randrange(3)
        damaged = bytearray(records[which])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            assert decode(merged([*records[:which], bytes(damaged), *records[which + 1 :]])) == whole
            missed += 1
        except FormatError:
            pass
    assert missed < 30


def big(txid: int, commit: int, pgnos: Sequence[int], page_size: int) -> bytes:
    encoder = Encoder(Header(2, page_size, commit, txid, txid, txid, 0, 32))
    out = [encoder.begin()]
    for at in range(0, len(pgnos), 512):
        some = pgnos[at : at + 512]
        images = b"".join(struct.pack("<IQ", n, txid).ljust(page_size, b"\0") for n in some)
        out.append(encoder.add(array("I", some), images))
    return b"".join([*out, encoder.finish(0)])


@pytest.mark.parametrize("page_size", [512, 65536])
def test_many_batches_around_the_lock_page(page_size: int) -> None:
    """The window moves over inputs of very different density; the lock page is in none."""
    lock = lock_pgno(65536)
    pages = 17000
    rng = random.Random(12)
    everything = [n for n in range(1, pages + 1) if page_size == 512 or n != lock]
    newest = dict.fromkeys(everything, 1)
    records = [big(1, pages, everything, page_size)]
    for txid, some in enumerate(
        [everything[5:9000:7], everything[-3:], sorted(rng.sample(everything, 3000)), everything[:2]], 2
    ):
        records.append(big(txid, pages, some, page_size))
        newest.update(dict.fromkeys(some, txid))
    decoder = Decoder(io.BytesIO(merged(records)).read)
    found = {}
    for pgnos, images in decoder:
        for at, pgno in enumerate(memoryview(pgnos).cast("I")):
            number, txid = struct.unpack_from("<IQ", images, at * page_size)
            assert number == pgno
            found[pgno] = txid
    assert found == newest


def test_frames_are_copied_not_made_again() -> None:
    """Blocks of another LZ4 come out as they went in."""
    header = Header(0, PAGE, 9, 5, 5, 5, FLAG | 3)
    stored = encode(header, array("I", [3]), bytes(PAGE), FLAG | 4, compress=False)
    assert reference.blocks(merged([stored])) == reference.blocks(stored)


def test_the_encoder_copies_only_what_can_follow() -> None:
    header = Header(0, PAGE, 9, 5, 5, 5, FLAG | 3)
    record = encode(header, array("I", [3, 4]), random.Random(1).randbytes(2 * PAGE), FLAG | 4)
    ((pgnos, frames),) = opened([record])[0].frames()
    assert pgnos == [3, 4]
    encoder = Encoder(header)
    with pytest.raises(ValueError, match="begin"):
        encoder.copy(frames[0])
    out = [encoder.begin(), encoder.copy(frames[0]), encoder.copy(frames[1])]
    assert b"".join([*out, encoder.finish(FLAG | 4)]) == record
    for wrong, what in (
        (frames[0] + frames[0], "ascend"),
        (frames[0][:-1], "no whole"),
        (bytes(6), "no whole"),
        (frames[0][:10] + b"\x10" + frames[0][11:], "LZ4"),
    ):
        encoder = Encoder(header)
        encoder.begin()
        with pytest.raises(FormatError, match=what):
            encoder.copy(wrong)


def test_an_input_is_verified_to_its_end_also_behind_the_last_page_taken() -> None:
    start, short = big(1, 40, range(1, 41), PAGE), big(2, 2, [1], PAGE)
    damaged = bytearray(start)
    damaged[-1] ^= 1
    with pytest.raises(ChecksumMismatch):
        merged([bytes(damaged), short])
