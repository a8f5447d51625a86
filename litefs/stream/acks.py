"""Acknowledgements: what a replica tells its primary that it holds.

``POST /stream/ack``, over the connection of the stream and with its headers. The body is the MessagePack of
an :class:`Ack`, the answer's that of an :class:`AckAnswer`. An acknowledgement is cumulative, one is under
way at a time, and each names only the databases that changed since the one before. Databases go by their
handles in the stream, so that one that was removed is never taken for another of its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from litefs.errors import FormatError
from litefs.link.rules import SyncRules
from litefs.stream.handshake import MAX_POSITION_MAP
from litefs.types import Point

HEADER_STREAM_ID = "Litefs-Stream-Id"
"""16 hex digits that the replica chose for the stream that an acknowledgement belongs to."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One database: the last transaction in the replica's log, and the last one that is durable there.

    ``chained``: what the log has was received in this stream, or received records follow on it. Without
    that it may be another history, unless it is exactly where the primary is.
    """

    handle: int
    txid: int
    checksum: int
    hash: int
    durable_txid: int
    durable_checksum: int
    durable_hash: int
    chained: bool

    @classmethod
    def of(cls, handle: int, tip: Point, durable: Point, *, chained: bool) -> Held:
        """From the points."""
        return cls(
            handle, tip.txid, tip.checksum, tip.hash, durable.txid, durable.checksum, durable.hash, chained
        )

    @property
    def point(self) -> Point:
        return Point(self.txid, self.checksum, self.hash)

    @property
    def durable(self) -> Point:
        return Point(self.durable_txid, self.durable_checksum, self.durable_hash)


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """``candidate``: the replica may become primary."""

    candidate: bool
    held: tuple[Held, ...]


class AckAnswer(msgspec.Struct, frozen=True, array_like=True):
    """``sync``: where these rules require replicas, this one is to sync its log at once; None: never."""

    sync: SyncRules | None = None


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A connected replica, as its primary sees it; ``in_sync``: it has every commit that was answered;
    ``held``: the last transaction in its log as far as it has told, of each database that it is sent."""

    node_id: int
    candidate: bool
    in_sync: bool
    hostname: str = ""
    held: Mapping[str, Point] = field(default_factory=dict)


_encoder = msgspec.msgpack.Encoder()
_acks = msgspec.msgpack.Decoder(Ack)
_answers = msgspec.msgpack.Decoder(AckAnswer)


def encode(message: Ack | AckAnswer) -> bytes:
    """The body of a request or an answer."""
    return _encoder.encode(message)


def decode_ack(body: bytes) -> Ack:
    """Raises FormatError."""
    if len(body) > MAX_POSITION_MAP:
        raise FormatError(f"acknowledgement of {len(body)} bytes, the limit is {MAX_POSITION_MAP}")
    try:
        return _acks.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"acknowledgement of {len(body)} bytes: {error}") from None


def decode_answer(body: bytes) -> AckAnswer:
    """Raises FormatError."""
    try:
        return _answers.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"answer of {len(body)} bytes to an acknowledgement: {error}") from None
