"""Names in an archive: Litestream's, and beside them our own, which Litestream does not look at.

::

    ROOT/DB[~tN]/ltx/LEVEL/MIN-MAX.ltx       files, directories, Google and Azure; MIN and MAX as %016x
    ROOT/DB[~tN]/LLLL/MIN-MAX.ltx            S3: the level as %04x
    ROOT/DB[~tN]/litefs/claim, start         who opened this timeline, and where its history begins
    ROOT/DB[~tN]/litefs/log/FIRST            the transactions themselves, in bundles (bundle.py)
    ROOT/DB[~tN]/litefs/big/TXID-HASH        the record of a transaction too big for a bundle
    ROOT/DB[~tN]/litefs/head                 up to where, and to what time, the archive is complete

DB is the database's name with every byte but letters, digits, ``.``, ``_`` and ``-`` as ``~XX``: safe in URLs
and one path component. The first timeline has no ``~tN``. Levels: 0 raw files, 1 to 8 compacted ones, 9
snapshots (Litestream v0.5, litestream.go and s3/replica_client.go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SNAPSHOT_LEVEL = 9
LEVELS = range(SNAPSHOT_LEVEL + 1)

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_FILE = re.compile(r"\A([0-9a-f]{16})-([0-9a-f]{16})\.ltx\Z")
_PREFIX = re.compile(r"\A((?:[A-Za-z0-9._-]|~[0-9A-F]{2})+)(?:~t([1-9][0-9]*))?\Z")
_BUNDLE = re.compile(r"\A[0-9a-f]{16}\Z")


def prefix_of(name: str, timeline: int = 1) -> str:
    """The path component of one timeline of a database."""
    encoded = "".join(chr(byte) if byte in _SAFE else f"~{byte:02X}" for byte in name.encode())
    if encoded in (".", ".."):
        encoded = encoded.replace(".", "~2E")
    return encoded if timeline == 1 else f"{encoded}~t{timeline}"


def parse_prefix(component: str) -> tuple[str, int] | None:
    """(database, timeline) of a path component; None if it is none of ours."""
    match = _PREFIX.match(component)
    if match is None or match[2] == "1":
        return None
    raw = re.sub(r"~([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), match[1])
    try:
        return raw.encode("latin-1").decode(), int(match[2] or 1)
    except UnicodeDecodeError:
        return None


def ltx_name(min_txid: int, max_txid: int) -> str:
    """The file name of transactions ``min_txid`` to ``max_txid``."""
    return f"{min_txid:016x}-{max_txid:016x}.ltx"


def parse_ltx_name(name: str) -> tuple[int, int] | None:
    """(min, max TXID) of a file name; None for any other name, which readers pass over."""
    match = _FILE.match(name)
    if match is None:
        return None
    txids = int(match[1], 16), int(match[2], 16)
    return txids if 1 <= txids[0] <= txids[1] else None


def parse_bundle_name(name: str) -> int | None:
    """The first TXID of a bundle by its name; None for any other name."""
    return int(name, 16) if _BUNDLE.match(name) else None


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kind of store names levels. ``flat``: S3's way, without ``ltx/``."""

    flat: bool = False

    def level(self, prefix: str, level: int) -> str:
        """The directory of a level, with the final slash; ``prefix`` may be empty."""
        base = f"{prefix}/" if prefix else ""
        return f"{base}{level:04x}/" if self.flat else f"{base}ltx/{level}/"


def own(prefix: str, name: str) -> str:
    """The key of something of ours below a timeline's prefix."""
    return f"{prefix}/litefs/{name}" if prefix else f"litefs/{name}"
