"""Which way a request goes, by the rules of Go LiteFS (v0.5). Knows no connections."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes, urlsplit

from litefs.config_proxy import ProxyConfig

HEALTH_PATH = "/litefs/health"

_ABSOLUTE = re.compile(rb"https?://", re.IGNORECASE)


class Kind(enum.Enum):
    """What the proxy does with a request."""

    HEALTH = "health"
    """Answer it: is this node close enough to its primary?"""
    PASS = "passthrough"
    """To the application here, whatever it is."""
    READ = "read"
    """To the application here, once this node has what the client wrote last."""
    WRITE = "write"
    """To the application beside the primary."""


class Rules:
    """The rules of one configuration."""

    def __init__(self, config: ProxyConfig) -> None:
        self._passthrough = _matcher(config.passthrough)
        self._always_forward = _matcher(config.always_forward)

    def kind(self, method: bytes, target: bytes) -> Kind:
        """What to do with a request of that method and target (RFC 9112 §3.2, as it was sent)."""
        path = path_of(target)
        if self._passthrough is not None and self._passthrough.fullmatch(path):
            return Kind.PASS
        reads = method in (b"GET", b"HEAD")
        if path == HEALTH_PATH and method == b"GET":
            return Kind.HEALTH
        if reads and (self._always_forward is None or not self._always_forward.fullmatch(path)):
            return Kind.READ
        return Kind.WRITE


def _matcher(globs: Sequence[str]) -> re.Pattern[str] | None:
    """One expression for all globs, in which ``*`` stands for anything; None without globs."""
    if not globs:
        return None
    return re.compile("|".join(".*".join(map(re.escape, glob.split("*"))) for glob in globs), re.DOTALL)


def path_of(target: bytes) -> str:
    """The path of a request's target, decoded: what globs are about."""
    if not target.startswith(b"/"):
        target = split_absolute(target)[1]
    path = target.partition(b"?")[0]
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "surrogateescape")


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """Authority and target in origin form of one in absolute form (RFC 9112 §3.2.2); no authority if it is
    not absolute, or names no host that could be."""
    if not _ABSOLUTE.match(target):
        return b"", target
    try:
        parts = urlsplit(target)
    except ValueError:  # brackets that hold no address
        return b"", target
    return parts.netloc, (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
