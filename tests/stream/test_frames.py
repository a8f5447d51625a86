"""The stream's bytes: round trips, limits, and a parser that survives anything."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litefs.errors import FormatError, ProtocolMismatch
from litefs.stream import frames as f
from litefs.stream.handshake import (
    MAX_DATABASES,
    Hello,
    decode_hello,
    decode_positions,
    encode_hello,
    encode_positions,
    parse_headers,
    request_headers,
)
from litefs.stream.parser import Parser
from litefs.stream.protocols import Identity
from litefs.types import CHECKSUM_FLAG, ZERO, Position

HELLO = Hello(Identity(0xABCDEF, "LFSC0123456789ABCDEF", 3, "höst"), 1_700_000_000_000)
GREETING = encode_hello(HELLO)
U64 = st.integers(0, (1 << 64) - 1)
POSITIONS = st.builds(
    lambda txid, checksum: Position(txid, checksum | CHECKSUM_FLAG), st.integers(1, 1 << 63), U64
)


def parse(data: bytes, step: int = 1 << 20) -> list[f.Frame]:
    parser = Parser()
    found: list[f.Frame] = []
    for at in range(0, len(data), step):
        found += parser.feed(data[at : at + step])
    return found


def pages(count: int, size: int = 512) -> tuple[bytes, bytes]:
    return array("I", range(1, count + 1)).tobytes(), b"".join(bytes([n % 251]) * size for n in range(count))


def every_frame() -> tuple[bytes, list[f.Frame]]:
    pgnos, images = pages(5)
    at = Position(7, CHECKSUM_FLAG | 5)
    encoded = [
        f.encode_database(1, "a/b.db"),
        f.encode_snapshot_begin(1, 512, 5, at, -3),
        f.encode_snapshot_pages(1, pgnos, images),
        f.encode_snapshot_abort(1, "späť"),
        f.encode_records(1, [b"one", b"two"]),
        f.encode_snapshot_end(1, at),
        f.encode_database(65535, "big"),
        f.encode_piece(65535, 10, 0, b"12345"),
        f.encode_records(1, [b"between"]),
        f.encode_piece(65535, 10, 5, b"67890"),
        f.encode_ready(),
        f.encode_heartbeat(1234),
        f.encode_drop(1),
        f.encode_database(1, "again"),
        f.encode_end("bye"),
    ]
    packed = encoded[2][f.FRAME_HEAD.size :]
    expected: list[f.Frame] = [
        HELLO,
        f.Database(1, "a/b.db"),
        f.SnapshotBegin(1, 512, 5, at, -3),
        f.SnapshotPages(1, packed, stored=False),
        f.SnapshotAbort(1, "späť"),
        f.Records(1, (b"one", b"two")),
        f.SnapshotEnd(1, at),
        f.Database(65535, "big"),
        f.RecordPiece(65535, 10, 0, b"12345"),
        f.Records(1, (b"between",)),
        f.RecordPiece(65535, 10, 5, b"67890"),
        f.Ready(),
        f.Heartbeat(1234),
        f.Drop(1),
        f.Database(1, "again"),
        f.End("bye"),
    ]
    return GREETING + b"".join(encoded), expected


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, 1 << 20])
def test_every_frame_survives_any_cut(step: int) -> None:
    data, expected = every_frame()
    assert parse(data, step) == expected


@given(st.lists(st.integers(0, 400), max_size=20))
def test_cuts_at_random_places(cuts: Sequence[int]) -> None:
    data, expected = every_frame()
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    parser = Parser()
    found: list[f.Frame] = []
    for start, end in pairwise(places):
        found += parser.feed(data[start:end])
    assert found == expected


@given(st.binary(max_size=300))
@example(b"\0\0\0\1")
@example(b"HTTP/1.1 200 OK\r\n\r\n")
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    for prefix in (b"", GREETING, GREETING + f.encode_database(1, "a")):
        parser = Parser()
        with suppress(FormatError, ProtocolMismatch):
            for frame in parser.feed(prefix + data):
                if isinstance(frame, f.SnapshotPages):
                    f.unpack_pages(frame)


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_another_stream_or_an_error(place: int, bit: int) -> None:
    data, _ = every_frame()
    damaged = bytearray(data)
    damaged[place % len(data)] ^= 1 << bit
    parser = Parser()
    try:
        for frame in parser.feed(bytes(damaged)):
            if isinstance(frame, f.SnapshotPages):
                pgnos, images = f.unpack_pages(frame)
                assert len(images) % (len(pgnos) // 4) == 0
    except (FormatError, ProtocolMismatch):
        pass


def head(kind: int, length: int, handle: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">BBHI", kind, flags, handle, length)


KNOWN = f.encode_database(1, "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (head(0, 0), "unknown frame type 0"),
        (head(11, 0), "unknown frame type 11"),
        (head(2, (1 << 20) + 1, 1), "of 1048577 bytes"),
        (head(7, 0, flags=1), "READY with flags 0x1"),
        (head(7, 1) + b"x", "READY: payload of 1 bytes"),
        (head(8, 7) + bytes(7), "HEARTBEAT: payload of 7 bytes"),
        (head(7, 0, handle=1), "READY with handle 1"),
        (head(2, 0, handle=2), "handle 2, which was never given"),
        (head(2, 0, handle=1), "no record"),
        (head(2, 8, handle=1) + struct.pack(">I", 9) + b"abcd", "record of 9 bytes at 4"),
        (head(2, 4, handle=1) + struct.pack(">I", 0), "record of 0 bytes"),
        (head(2, 12, handle=1, flags=1) + struct.pack(">Q", 3) + b"abcd", "piece of 4 bytes"),
        (head(2, 12, handle=1, flags=3) + struct.pack(">Q", 4) + b"abcd", "piece of 4 bytes"),
        (head(2, 12, handle=1, flags=3) + struct.pack(">Q", 1 << 41) + b"abcd", "piece of 4 bytes"),
        (f.encode_piece(1, 9, 0, b"abc") + f.encode_records(1, [b"x"]), "inside a record in pieces"),
        (f.encode_piece(1, 9, 0, b"abc") + f.encode_snapshot_end(1, ZERO), "inside a record in pieces"),
        (f.encode_database(1, "b"), "handle 1 is taken"),
        (f.encode_database(2, "a"), "has a handle already"),
        (f.encode_database(0, "b"), "handle 0 is taken"),
        (f.encode_database(2, "../../etc/passwd"), "invalid database name"),
        (f.encode_database(2, "b-wal"), "invalid database name"),
        (head(1, 2, handle=2) + b"\xff\xfe", "invalid database name"),
        (f.encode_snapshot_begin(1, 1000, 5, ZERO, 0), "5 pages of 1000 bytes"),
        (f.encode_snapshot_begin(1, 512, 0, ZERO, 0), "0 pages of 512 bytes"),
        (f.encode_snapshot_begin(1, 512, 5, ZERO, 0), "is not the position of a snapshot"),
        (f.encode_snapshot_begin(1, 512, 5, Position((1 << 64) - 1, 1 << 63), 0), "is not the position"),
        (f.encode_snapshot_end(1, Position(5, 5)), "is not the position of a snapshot"),
        (head(4, 8, handle=1) + struct.pack(">II", 2, 1000), "1000 bytes of images for 2 pages"),
        (head(4, 8, handle=1) + struct.pack(">II", 0, 0), "0 bytes of images for 0 pages"),
        (head(4, 8, handle=1) + struct.pack(">II", 4096, 4096 * 512), "bytes of images"),
        (head(4, 8, handle=1) + struct.pack(">II", 2, 1024), "do not hold 2 page numbers"),
        (f.encode_end("x") + f.encode_ready(), "data after END"),
        (f.encode_drop(1) + f.encode_records(1, [b"x"]), "never given"),
    ],
)
def test_each_broken_rule_is_named_with_its_offset(data: bytes, message: str) -> None:
    with pytest.raises((FormatError, ProtocolMismatch), match="stream offset") as caught:
        parse(GREETING + KNOWN + data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n", "begins with b'HTTP/1.1 200 OK"),
        (b"\0\0\0\2", "not a LiteFS stream"),
        (b"LFSTRM\r\n\0\2\0\x20", "version 2, this node speaks 1"),
        (b"LFSTRM\r\n\0\1\0\1", "hello of 1 bytes"),
        (GREETING[:-1] + b"\xff", "unreadable hello"),
        (GREETING.replace(b"LFSC", b"LFSD"), "not a cluster id"),
    ],
)
def test_a_hello_of_something_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolMismatch) as caught:
        parse(data)
    assert message in str(caught.value)


def test_a_record_in_pieces_may_be_broken_off() -> None:
    begun = GREETING + KNOWN + f.encode_piece(1, 9, 0, b"abc")
    assert parse(begun + f.encode_drop(1) + KNOWN)[-2:] == [f.Drop(1), f.Database(1, "a")]
    again = f.encode_piece(1, 3, 0, b"def")
    assert parse(begun + f.encode_snapshot_abort(1, "x") + again)[-2:] == [
        f.SnapshotAbort(1, "x"),
        f.RecordPiece(1, 3, 0, b"def"),
    ]


@given(st.integers(1, 40), st.binary(min_size=512, max_size=512))
def test_pages_round_trip_compressed_or_not(count: int, noise: bytes) -> None:
    pgnos, images = pages(count)
    for content in (images, noise * count):
        frame = parse(GREETING + KNOWN + f.encode_snapshot_pages(1, pgnos, content))[-1]
        assert isinstance(frame, f.SnapshotPages)
        assert f.unpack_pages(frame) == (pgnos, content)


def test_incompressible_pages_are_stored() -> None:
    import random

    noise = random.Random(4).randbytes(65536 * 4)
    pgnos = array("I", range(1, 5)).tobytes()
    frame = parse(GREETING + KNOWN + f.encode_snapshot_pages(1, pgnos, noise))[-1]
    assert isinstance(frame, f.SnapshotPages)
    assert frame.stored
    assert f.unpack_pages(frame) == (pgnos, noise)


def test_damaged_pages_are_a_format_error() -> None:
    pgnos, images = pages(8)
    data = bytearray(f.encode_snapshot_pages(1, pgnos, images))
    data[-40:] = b"\xff" * 40
    frame = parse(GREETING + KNOWN + bytes(data))[-1]
    assert isinstance(frame, f.SnapshotPages)
    with pytest.raises(FormatError, match=r"^stream offset 72: SNAPSHOT_PAGES: "):
        f.unpack_pages(frame)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?\.db", fullmatch=True), POSITIONS))
def test_position_maps_round_trip(positions: dict[str, Position]) -> None:
    assert decode_positions(encode_positions(positions)) == positions


@given(st.binary(max_size=120))
def test_any_body_is_a_position_map_or_a_format_error(body: bytes) -> None:
    for data in (body, b"\0\0\0\1" + body, b"\0\0\0\1\0\0\0\1a" + body):
        try:
            positions = decode_positions(data)
        except FormatError:
            continue
        assert decode_positions(encode_positions(positions)) == positions


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "0 bytes"),
        (struct.pack(">I", MAX_DATABASES + 1), "the limit is"),
        (b"\0\0\0\1", "offset 4: truncated"),
        (b"\0\0\0\1\0\0\xff\xff", "does not fit"),
        (b"\0\0\0\1\0\0\0\1a" + struct.pack(">QQ", 1, 5), "is not a position"),
        (b"\0\0\0\1\0\0\0\1a" + struct.pack(">QQ", 0, 1 << 63), "is not a position"),
        (b"\0\0\0\1\0\0\0\1a" + struct.pack(">QQ", (1 << 64) - 1, 1 << 63), "is not a position"),
        (b"\0\0\0\2" + 2 * (b"\0\0\0\1a" + bytes(16)), "occurs twice"),
        (b"\0\0\0\0x", "1 bytes too many"),
        (b"\0\0\0\1\0\0\0\2.." + bytes(16), "invalid database name"),
    ],
)
def test_a_broken_position_map_is_named_with_its_offset(body: bytes, message: str) -> None:
    with pytest.raises(FormatError, match="position map") as caught:
        decode_positions(body)
    assert message in str(caught.value)


@given(U64, U64, st.text(max_size=60), st.booleans())
def test_hellos_and_headers_round_trip(node_id: int, term: int, hostname: str, known: bool) -> None:
    identity = Identity(node_id, "LFSC0123456789ABCDEF" if known else "", term, hostname)
    data = encode_hello(Hello(identity, 5))
    assert decode_hello(data + b"more") == (Hello(identity, 5), len(data))
    assert all(decode_hello(data[:size]) is None for size in range(len(data)))
    headers = parse_headers(request_headers(identity).get)
    assert headers == identity
