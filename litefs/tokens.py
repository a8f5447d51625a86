"""Bearer tokens (RFC 6750): which requests a node answers, what they may see, and what it shows to others."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from litefs.config_http import TokenConfig
from litefs.config_types import Secret
from litefs.errors import ConfigError
from litefs.fromfiles import FromFiles

MAX_TOKEN = 4096
_TOKEN = re.compile(r"[\x21-\x7e]+")
"""What a header can carry; RFC 6750 allows less, and people use more."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may see: ``name`` of its token, and patterns of databases as the shell has them (``*``
    also matches ``/``); None: all."""

    name: str
    databases: tuple[str, ...] | None = None

    @property
    def limited(self) -> bool:
        """Whether there may be databases that it does not see."""
        return self.databases is not None

    def allows(self, database: str) -> bool:
        """Whether it may see a database of that name."""
        return self.databases is None or matches(self.databases, database)


EVERYTHING = Access("")
"""Of a request to a node that asks for no token."""


def matches(patterns: Sequence[str], database: str) -> bool:
    """Whether one of the patterns fits."""
    return any(fnmatchcase(database, pattern) for pattern in patterns)


class Tokens:
    """The tokens that a node accepts, and its own."""

    def __init__(self, own: Secret | None = None, others: Sequence[TokenConfig] = ()) -> None:
        """``own`` is accepted for everything. Raises ConfigError: a file cannot be read, or two are equal."""
        self._own = None if own is None else _source("http.auth-token", own)
        self._accepted: list[tuple[FromFiles[str], Access]] = []
        if self._own is not None:
            self._accepted.append((self._own, Access("auth-token")))
        for other in others:
            source = _source(f"http.tokens: {other.name}", other.secret)
            self._accepted.append((source, Access(other.name, other.databases or None)))
        values = [source.get() for source, _ in self._accepted]
        if len({*values}) < len(values):
            raise ConfigError("http.auth-token and http.tokens: each token may be given once only")

    @property
    def required(self) -> bool:
        """Whether a request needs a token at all."""
        return bool(self._accepted)

    def own(self) -> str | None:
        """The token that this node shows to others."""
        return None if self._own is None else self._own.get()

    def check(self, authorization: bytes | None) -> Access | None:
        """What the value of an ``Authorization`` header opens; None: nothing.

        Every accepted token is compared, each in constant time, whatever comes.
        """
        if not self._accepted:
            return EVERYTHING
        scheme, _, token = (authorization or b"").partition(b" ")
        digest = _digest(token.strip())
        found: Access | None = None
        for source, access in self._accepted:
            if hmac.compare_digest(digest, _digest(source.get().encode())):
                found = access
        return found if scheme.lower() == b"bearer" else None


def bearer(token: str) -> str:
    """The value of the ``Authorization`` header that shows ``token``."""
    return f"Bearer {token}"


def _digest(token: bytes) -> bytes:
    """Of equal length for all, so that comparing tells nothing of a token's length either."""
    return hashlib.sha256(token).digest()


def _source(key: str, secret: Secret) -> FromFiles[str]:
    path = secret.path
    if path is None:
        return FromFiles(key, (), lambda: _checked(key, secret))
    return FromFiles(key, (path,), lambda: _read(key, path))


def _read(key: str, path: str) -> str:
    try:
        text = Path(path).read_bytes()[: MAX_TOKEN + 2].decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror}") from error
    return _checked(f"{key}: {path}", text.strip())


def _checked(what: str, token: str) -> str:
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN:
        raise ConfigError(
            f"{what}: no token; it has 1 to {MAX_TOKEN} visible ASCII characters, and no blanks"
        )
    return str(token)
