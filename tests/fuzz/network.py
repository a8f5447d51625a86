"""What peers, the other process of the node, and the administrator send."""

from __future__ import annotations

import tempfile
from array import array
from itertools import pairwise
from pathlib import Path

import msgspec

from litefs.config import load
from litefs.errors import ConfigError, FormatError, InvalidName, ProtocolMismatch
from litefs.link.messages import FOREVER, Lag, Mounted, SetRole, Start, decode_message
from litefs.store.paths import decode_name, encode_name, validate_name
from litefs.stream import frames as f
from litefs.stream.handshake import (
    MAX_DATABASES,
    Hello,
    decode_positions,
    encode_hello,
    encode_positions,
    parse_headers,
    request_headers,
)
from litefs.stream.parser import Parser
from litefs.stream.protocols import Identity
from litefs.types import CHECKSUM_FLAG, START, Point, Role
from tests.fuzz.target import Target

_IDENTITY = Identity(0xABCDEF, "LFSC0123456789ABCDEF", 3, "hôst")
_AT = Point(7, CHECKSUM_FLAG | 5, 99)


# --- frames of the stream


def _stream() -> bytes:
    pgnos, images = array("I", range(1, 6)).tobytes(), b"".join(bytes([n]) * 512 for n in range(5))
    return encode_hello(Hello(_IDENTITY, 1_700_000_000_000)) + b"".join(
        (
            f.encode_database(1, "a/b.db"),
            f.encode_snapshot_begin(1, 512, 5, _AT, -3),
            f.encode_snapshot_pages(1, pgnos, images),
            f.encode_records(1, [b"one", b"two"]),
            f.encode_snapshot_end(1, _AT),
            f.encode_database(65535, "big"),
            f.encode_piece(65535, 10, 0, b"12345"),
            f.encode_piece(65535, 10, 5, b"67890"),
            f.encode_snapshot_abort(1, "späť"),
            f.encode_heartbeat(1234),
            f.encode_drop(1),
            f.encode_ready(),
            f.encode_end("bye"),
        )
    )


def _parse(data: bytes, places: list[int]) -> tuple[list[f.Frame], str]:
    """Frames and the error they end with, for a stream that arrives in pieces."""
    parser = Parser()
    found: list[f.Frame] = []
    try:
        for start, end in pairwise((0, *places, len(data))):
            for frame in parser.feed(data[start:end]):
                if isinstance(frame, f.SnapshotPages):
                    pgnos, images = f.unpack_pages(frame)
                    assert len(images) % (len(pgnos) // 4) == 0
                found.append(frame)
    except (FormatError, ProtocolMismatch) as error:
        return found, f"{type(error).__name__}: {error}"
    return found, ""


def _run_stream(data: bytes) -> None:
    places = sorted(place for place in (1, 9, 13, 60, 61, 200, len(data) // 2) if place < len(data))
    frames, error = _parse(data, [])
    same_frames, same_error = _parse(data, places)
    # The message may quote what has arrived.
    assert (frames, error.split(":")[0]) == (same_frames, same_error.split(":")[0]), (
        f"{error!r}, {same_error!r}"
    )
    if error:
        raise FormatError(error)


# --- handshake


def _run_positions(data: bytes) -> None:
    positions = decode_positions(data)
    assert len(positions) <= MAX_DATABASES
    for name in positions:
        validate_name(name)
    assert decode_positions(encode_positions(positions)) == positions


def _run_headers(data: bytes) -> None:
    """Lines of ``name:value``."""
    lines = (line.split(":", 1) for line in data.decode("latin-1").split("\n"))
    headers = {line[0].lower(): line[1] for line in lines if len(line) == 2}
    identity = parse_headers(lambda name: headers.get(name.lower()))
    assert 0 <= identity.node_id < 1 << 64
    assert 0 <= identity.term < 1 << 64


def _run_name(data: bytes) -> None:
    """A component of a path in the data directory, and a name from the network."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        name = decode_name(text)
    except InvalidName:
        name = text
    validate_name(name)
    encoded = encode_name(name)
    assert "/" not in encoded
    assert encoded not in ("", ".", "..")
    assert decode_name(encoded) == name
    assert not Path("/base", encoded).is_relative_to("/base/..")
    assert Path("/base", encoded).parent == Path("/base")


# --- link


def _run_link(data: bytes) -> None:
    message = decode_message(data)
    data = msgspec.msgpack.encode(message)  # compared as bytes: a number may be NaN
    assert msgspec.msgpack.encode(decode_message(data)) == data


# --- litefs.yml


def _run_config(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix="litefs-fuzz-", suffix=".yml") as file:
        file.write(data)
        file.flush()
        try:
            loaded = load(file.name)
        except ConfigError as error:
            raise ConfigError(str(error).replace(file.name, "litefs.yml")) from error
    assert loaded.config.data.dir
    assert loaded.config.http.host_port[1] <= 65535


_CONFIG = """\
exec: "app --port 1"
exit-on-error: false
data: {dir: /var/lib/litefs, retention: 1h30m, retention-bytes: 0x10000}
fuse:
  dir: "/litefs"
  uid: 1000
  mode: 0640
http: {addr: ":20202"}
lease: {type: static, candidate: true, hostname: ${HOST}, reconnect-delay: 500ms}
log: {format: json, debug: ${A == "b"}}
"""
_CONFIG_WORDS = (
    b"[",
    b"{",
    b"]",
    b"}",
    b"- ",
    b": ",
    b"?",
    b"\n",
    b"\n  ",
    b"&a ",
    b"*a ",
    b"<<: *a",
    b"|\n",
    b"~",
    b'"',
    b"'",
    b"!!int ",
    b"!!bool x",
    b"!!timestamp x",
    b"!!binary x",
    b"!!float ",
    b"!!python/object:os.system ",
    b"!x ",
    b"2001-02-30",
    b"0x",
    b"1e999",
    b"9" * 400,
    b"1:60",
    b".inf",
    b"$",
    b"${",
    b"${A",
    b"}",
    b"\\0",
    b"\\ud800",
    b"\xff",
    b"\0",
    b"---\n",
    b"...",
    b"%YAML 9",
    b"null",
    b"0o777",
    b"-5s",
    b"h",
    b"exec:",
    b"data:",
    b"uid: ",
    b"retention: ",
    b"mode: ",
    b"lease: {type: consul}",
    b"/",
    b"..",
)
_CONFIG_LIST = """\
fuse: &f {dir: /mnt}
data:
  dir: /var/lib/litefs
  retention-monitor-interval: 1m
exec:
  - cmd: "a 'b c'"
    if-candidate: yes
  - {cmd: d}
lease: {type: static}
proxy: {addr: ":8080", target: "localhost:80", db: x, passthrough: ["*.js", !!str 10, 2001-01-01]}
uid: [[[[ !!int x ]]]]
"""

TARGETS = (
    Target("stream", (_stream(),), _run_stream, (FormatError,), r"stream offset \d+"),
    Target(
        "positions",
        tuple(
            encode_positions(value) for value in ({}, {"a.db": _AT, "dir/b": START, "č": Point(1, 1 << 63)})
        ),
        _run_positions,
        (FormatError,),
        "position map: ",
    ),
    Target(
        "headers",
        ("\n".join(f"{k}:{v}" for k, v in request_headers(_IDENTITY).items()).encode(),),
        _run_headers,
        (FormatError, ProtocolMismatch),
        "Litefs-|LiteFS-Stream|stream version",
    ),
    Target(
        "name",
        (b"app.db", b"dir%2Fsub%2Fa.db", b"100%25", b"a/b", b"x-mj0123456789", b"a-journal", "čšž".encode()),
        _run_name,
        (InvalidName,),
        "database name",
    ),
    Target(
        "link",
        tuple(
            msgspec.msgpack.encode(message)
            for message in (
                Start("/data", "/mnt", 7, uid=1),
                SetRole(Role.REPLICA, 3, FOREVER, "host"),
                Lag(None, -5),
                Mounted(44, ["a", "b"]),
            )
        ),
        _run_link,
        (FormatError,),
        "message of .* bytes",
    ),
    Target(
        "config",
        (_CONFIG.encode(), _CONFIG_LIST.encode()),
        _run_config,
        (ConfigError,),
        r"litefs\.yml",
        words=_CONFIG_WORDS,
    ),
)
