"""What replica and primary tell each other before frames flow (version 1 of our own stream).

Request: ``POST /stream`` over HTTP/2 with the headers below, and ``?filter=PATTERN`` for each pattern of
databases that alone are wanted (none: all); the body is the replica's position map, all integers big-endian:
u32 count, then per database, names ascending: u32 name length, name (UTF-8), u64 TXID, u64 checksum.
Response: status 200 with the same headers, then the hello: magic ``LFSTRM\\r\\n``, u16 version, u16 length of
what follows, u64 node id, u64 term, i64 Unix ms, u8 length and cluster id, u8 length and hostname. Frames
follow (:mod:`litefs.stream.frames`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from litefs.errors import FormatError, InvalidName, ProtocolMismatch
from litefs.store.paths import validate_name
from litefs.stream.protocols import Identity
from litefs.types import CHECKSUM_FLAG, MAX_TXID, Position

VERSION = 1
HEADER_STREAM = "LiteFS-Stream"
HEADER_ID = "Litefs-Id"
HEADER_CLUSTER_ID = "Litefs-Cluster-Id"
HEADER_TERM = "Litefs-Term"
HEADER_HOSTNAME = "Litefs-Hostname"
"""Of a request: the replica's name for people, percent-encoded."""
HEADER_LIMITED = "Litefs-Limited"
"""In a response: the name of the replica's token, if that is not for all databases."""
HEADER_TAILS = "Litefs-Tails"
"""In a refusal (503): the body is a position map, of databases whose tail the primary has lost."""
FILTER = "filter"

MAX_DATABASES = 0xFFFF
MAX_NAME = 1024
MAX_HOSTNAME = 255
"""Characters."""
MAX_POSITION_MAP = 16 << 20
"""Bytes of a position map that a primary reads before it refuses the request."""

MAGIC = b"LFSTRM\r\n"
_HELLO_HEAD = struct.Struct(">8sHH")
_HELLO_BODY = struct.Struct(">QQq")
_U32 = struct.Struct(">I")
_POSITION = struct.Struct(">QQ")
_CLUSTER_ID = re.compile(r"\ALFSC[0-9A-F]{16}\Z")


@dataclass(frozen=True, slots=True)
class Hello:
    """First words of a primary. ``timestamp`` is its clock in Unix ms."""

    identity: Identity
    timestamp: int


def format_node_id(node_id: int) -> str:
    """The form of ``Litefs-Id``: 16 upper-case hex digits."""
    return f"{node_id:016X}"


def parse_node_id(text: str, header: str = HEADER_ID) -> int:
    """Read ``Litefs-Id``, or another header of that form. Raises FormatError."""
    if not re.fullmatch(r"[0-9A-Fa-f]{1,16}", text):
        raise FormatError(f"{header}: not a node id: {text[:40]!r}")
    return int(text, 16)


def request_headers(identity: Identity) -> dict[str, str]:
    """Headers that introduce this node; the cluster id is left out while unknown."""
    headers = {
        HEADER_STREAM: str(VERSION),
        HEADER_ID: format_node_id(identity.node_id),
        HEADER_TERM: str(identity.term),
    }
    if identity.cluster_id:
        headers[HEADER_CLUSTER_ID] = identity.cluster_id
    if identity.hostname:
        headers[HEADER_HOSTNAME] = quote(identity.hostname[:MAX_HOSTNAME], errors="replace")
    return headers


def parse_headers(get: Callable[[str], str | None]) -> Identity:
    """Read a peer's headers; ``get`` finds one by name in any case.

    Raises ProtocolMismatch for a peer that does not speak this version, FormatError for a header that is
    malformed.
    """
    version = get(HEADER_STREAM)
    if version is None:
        raise ProtocolMismatch(
            f"the peer sent no {HEADER_STREAM} header: it is not a node of this LiteFS "
            f"(Go LiteFS speaks another stream); this node speaks version {VERSION}"
        )
    if version != str(VERSION):
        raise ProtocolMismatch(f"the peer speaks stream version {version[:20]!r}, this node speaks {VERSION}")
    term = get(HEADER_TERM) or "0"
    if not re.fullmatch(r"[0-9]{1,20}", term) or int(term) >= 1 << 64:
        raise FormatError(f"{HEADER_TERM}: not a number: {term[:40]!r}")
    cluster_id = get(HEADER_CLUSTER_ID) or ""
    if cluster_id:
        check_cluster_id(cluster_id)
    hostname = unquote((get(HEADER_HOSTNAME) or "")[: 12 * MAX_HOSTNAME])[:MAX_HOSTNAME]
    return Identity(parse_node_id(get(HEADER_ID) or ""), cluster_id, int(term), hostname)


def check_cluster_id(cluster_id: str) -> None:
    """Raises FormatError unless it is ``LFSC`` and 16 upper-case hex digits."""
    if not _CLUSTER_ID.match(cluster_id):
        raise FormatError(f"{HEADER_CLUSTER_ID}: not a cluster id: {cluster_id[:40]!r}")


def encode_positions(positions: Mapping[str, Position]) -> bytes:
    """The request body. Raises FormatError beyond the protocol's limits."""
    if len(positions) > MAX_DATABASES:
        raise FormatError(f"{len(positions)} databases, a stream carries at most {MAX_DATABASES}")
    parts = [_U32.pack(len(positions))]
    for name, position in sorted(positions.items()):
        raw = name.encode()
        parts += (_U32.pack(len(raw)), raw, _POSITION.pack(position.txid, position.checksum))
    body = b"".join(parts)
    if len(body) > MAX_POSITION_MAP:
        raise FormatError(f"position map of {len(body)} bytes, the limit is {MAX_POSITION_MAP}")
    return body


def decode_positions(body: bytes) -> dict[str, Position]:
    """Read a request body. Raises FormatError with the offset of what is wrong."""
    if len(body) < 4 or len(body) > MAX_POSITION_MAP:
        raise FormatError(f"position map: {len(body)} bytes, expected 4 to {MAX_POSITION_MAP}")
    (count,) = _U32.unpack_from(body)
    if count > MAX_DATABASES:
        raise FormatError(f"position map: offset 0: {count} databases, the limit is {MAX_DATABASES}")
    positions: dict[str, Position] = {}
    at = 4
    for _ in range(count):
        start = at
        if len(body) - at < 4:
            raise FormatError(f"position map: offset {start}: truncated")
        (length,) = _U32.unpack_from(body, at)
        at += 4
        if length > MAX_NAME or len(body) - at < length + _POSITION.size:
            raise FormatError(f"position map: offset {start}: name of {length} bytes does not fit")
        name = decode_name(body[at : at + length], f"position map: offset {start}")
        position = Position(*_POSITION.unpack_from(body, at + length))
        at += length + _POSITION.size
        if name in positions:
            raise FormatError(f"position map: offset {start}: {name!r} occurs twice")
        if (position.txid == 0) != (position.checksum == 0) or (
            position.txid and not (position.checksum & CHECKSUM_FLAG and position.txid <= MAX_TXID)
        ):
            raise FormatError(f"position map: offset {start}: {position} is not a position")
        positions[name] = position
    if at != len(body):
        raise FormatError(f"position map: offset {at}: {len(body) - at} bytes too many")
    return positions


def decode_name(raw: bytes, place: str) -> str:
    """A database name from the network, checked against escape. Raises FormatError naming ``place``."""
    try:
        name = raw.decode()
        validate_name(name)
    except (UnicodeDecodeError, InvalidName) as error:
        raise FormatError(f"{place}: invalid database name {raw[:80]!r}: {error}") from error
    return name


def encode_hello(hello: Hello) -> bytes:
    """The first bytes of a response. Raises FormatError if an identity does not fit."""
    cluster_id = hello.identity.cluster_id.encode()
    hostname = hello.identity.hostname.encode()[:255]
    if len(cluster_id) > 255:
        raise FormatError(f"cluster id of {len(cluster_id)} bytes")
    body = b"".join(
        (
            _HELLO_BODY.pack(hello.identity.node_id, hello.identity.term, hello.timestamp),
            bytes((len(cluster_id),)),
            cluster_id,
            bytes((len(hostname),)),
            hostname,
        )
    )
    return _HELLO_HEAD.pack(MAGIC, VERSION, len(body)) + body


def decode_hello(data: bytes | bytearray) -> tuple[Hello, int] | None:
    """Read a hello from the start of ``data``: (hello, its length), or None if more bytes are needed.

    Raises ProtocolMismatch as soon as the bytes cannot become a hello of this version.
    """
    if not MAGIC.startswith(data[: len(MAGIC)]):
        raise ProtocolMismatch(f"stream offset 0: not a LiteFS stream, it begins with {bytes(data[:16])!r}")
    if len(data) < _HELLO_HEAD.size:
        return None
    _, version, length = _HELLO_HEAD.unpack_from(data)
    if version != VERSION:
        raise ProtocolMismatch(
            f"stream offset 8: the peer speaks version {version}, this node speaks {VERSION}"
        )
    if not _HELLO_BODY.size + 2 <= length <= _HELLO_BODY.size + 2 + 2 * 255:
        raise ProtocolMismatch(f"stream offset 10: hello of {length} bytes")
    if len(data) < _HELLO_HEAD.size + length:
        return None
    return _decode_hello_body(
        bytes(data[_HELLO_HEAD.size : _HELLO_HEAD.size + length])
    ), _HELLO_HEAD.size + length


def _decode_hello_body(body: bytes) -> Hello:
    node_id, term, timestamp = _HELLO_BODY.unpack_from(body)
    cluster_end = _HELLO_BODY.size + 1 + body[_HELLO_BODY.size]
    if cluster_end >= len(body) or cluster_end + 1 + body[cluster_end] != len(body):
        raise ProtocolMismatch("stream offset 12: the lengths inside the hello do not add up")
    try:
        cluster_id = body[_HELLO_BODY.size + 1 : cluster_end].decode("ascii")
        hostname = body[cluster_end + 1 :].decode()
        if cluster_id:
            check_cluster_id(cluster_id)
    except (UnicodeDecodeError, FormatError) as error:
        raise ProtocolMismatch(f"stream offset 12: unreadable hello: {error}") from error
    return Hello(Identity(node_id, cluster_id, term, hostname), timestamp)
