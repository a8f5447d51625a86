"""The beat as lease stores keep it: one JSON object, the same in every store (docs/failover.md).

::

    {"format": 1, "holder": TOKEN, "nonce": TEXT, "displaces": TOKEN | "",
     "term": N, "node-id": N, "primary": {"hostname": TEXT, "advertise-url": TEXT},
     "positions": {NAME: "TXID/CHECKSUM/HASH", ...}, "in-sync": [N, ...] | null,
     "released": BOOL, "successor": N | null}
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from litefs.cluster.lease import Beat, LeaseUnavailable, PrimaryInfo
from litefs.types import Point

FORMAT = 1
MAX_BYTES = 256 << 10
"""Of a stored beat. Consul takes 512 KiB in one transaction, and base64 makes four bytes of three."""


@dataclass(frozen=True, slots=True)
class Record:
    """A beat and whose it is.

    ``holder``: drawn anew for each hold of the lease (with Consul: the session), so that a writer whose reply
    was lost knows its own records again. ``displaces``: the holder whose place a claim takes, as long as the
    claimant does not hold the lease yet.
    """

    beat: Beat
    holder: str
    displaces: str = ""


class _Primary(msgspec.Struct, frozen=True, rename="kebab"):
    hostname: str
    advertise_url: str


class _Stored(msgspec.Struct, frozen=True, rename="kebab"):
    format: int
    holder: str
    nonce: str
    displaces: str
    term: int
    node_id: int
    primary: _Primary
    positions: dict[str, str]
    in_sync: tuple[int, ...] | None
    released: bool
    successor: int | None


_decoder = msgspec.json.Decoder(_Stored)


def new_token() -> str:
    """What a store without sessions knows a holder by: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def encode(record: Record, limit: int = MAX_BYTES) -> bytes:
    """The record's bytes, at most ``limit`` unless it is longer without positions; never the same twice, so
    that a store whose versions are hashes of the content sees a change.

    Of more positions than fit the last of the mapping stay, so the caller puts what changed last at its end.
    A failover does not compare the databases that are left out.
    """
    beat = record.beat
    stored = _Stored(
        format=FORMAT,
        holder=record.holder,
        nonce=secrets.token_hex(8),
        displaces=record.displaces,
        term=beat.term,
        node_id=beat.node_id,
        primary=_Primary(beat.primary.hostname, beat.primary.advertise_url),
        positions={},
        in_sync=beat.in_sync,
        released=beat.released,
        successor=beat.successor,
    )
    room = limit - len(msgspec.json.encode(stored))
    return msgspec.json.encode(msgspec.structs.replace(stored, positions=_fitting(beat.positions, room)))


def decode(data: bytes, where: str) -> Record:
    """Read what :func:`encode` wrote. Raises LeaseUnavailable, naming ``where``, for anything else: who leads
    is then not known, and nobody may take the lease."""
    try:
        stored = _decoder.decode(data)
        if stored.format != FORMAT:
            raise ValueError(f"format {stored.format}, this version knows {FORMAT}")
        positions = {name: Point.parse(text) for name, text in stored.positions.items()}
    except (msgspec.MsgspecError, ValueError) as error:
        raise LeaseUnavailable(f"{where}: not a beat: {error}") from None
    beat = Beat(
        term=stored.term,
        node_id=stored.node_id,
        primary=PrimaryInfo(stored.primary.hostname, stored.primary.advertise_url),
        positions=positions,
        in_sync=stored.in_sync,
        released=stored.released,
        successor=stored.successor,
    )
    return Record(beat, stored.holder, stored.displaces)


def _fitting(positions: Mapping[str, Point], room: int) -> dict[str, str]:
    """The last positions whose JSON takes at most ``room`` bytes, in their order."""
    kept: list[tuple[str, str]] = []
    for name in reversed(list(positions)):
        text = str(positions[name])
        room -= len(msgspec.json.encode(name)) + len(text) + len(':"",')
        if room < 0:
            break
        kept.append((name, text))
    return dict(reversed(kept))
