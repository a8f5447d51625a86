"""``http.tls`` and ``http.tokens``: sections of ``litefs.yml`` that Go LiteFS does not have."""

from __future__ import annotations

import re
from urllib.parse import quote

from litefs.config_types import FilePath, Secret, Section
from litefs.errors import ConfigError

MAX_PATTERN = 1024
"""Bytes; as long as a database's name may be."""
MAX_PATTERNS = 32 << 10
"""Bytes of a list as it stands in a request's URL, ``filter=`` and ``&`` included; a server takes 64 KiB of
headers."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class TLSConfig(Section, frozen=True):
    """Ours: paths of PEM files, read again when they change ([who may talk to a node](security.md))."""

    cert: FilePath | None = None
    """Ours: this node's certificate with its chain, for its server and towards other nodes."""
    key: FilePath | None = None
    """Ours: its key, without a passphrase."""
    ca: FilePath | None = None
    """Ours: whom to trust; without it the system's authorities."""
    verify_clients: bool = True
    """Ours: with `ca`, whoever connects needs a certificate too."""

    @property
    def serves(self) -> bool:
        """Whether this node's own server speaks TLS."""
        return self.cert is not None


class TokenConfig(Section, frozen=True):
    """Ours: one more token that the server accepts."""

    name: str
    """Ours: its name in the log."""
    token: Secret | None = None
    """Ours: the token itself, or `file:PATH`."""
    token_file: FilePath | None = None
    """Ours: the file that holds it, in place of `token`."""
    databases: tuple[str, ...] = ()
    """Ours: the databases that it is good for, as patterns of the shell; none: all."""

    @property
    def secret(self) -> Secret:
        """``token``, or ``token-file`` in the same form."""
        return self.token or Secret(f"{Secret.FILE}{self.token_file}")


def validate_tls(tls: TLSConfig) -> None:
    """Raises ConfigError."""
    if (tls.cert is None) != (tls.key is None):
        raise ConfigError("http.tls: cert and key belong together, one of them is missing")


def validate_tokens(auth_token: Secret | None, tokens: tuple[TokenConfig, ...]) -> None:
    """Raises ConfigError."""
    if auth_token is None and tokens:
        raise ConfigError(
            "http.tokens needs http.auth-token too: it opens all databases, and this node shows it to others"
        )
    names = [token.name for token in tokens]
    for token in tokens:
        if not _NAME.fullmatch(token.name) or names.count(token.name) > 1:
            raise ConfigError(
                f"http.tokens: each needs a name of its own, of letters, digits and _ . -; got {token.name!r}"
            )
        if (token.token is None) == (token.token_file is None):
            raise ConfigError(f"http.tokens: {token.name}: give either token or token-file")
        validate_patterns(token.databases, f"http.tokens: {token.name}: databases")


def validate_patterns(patterns: tuple[str, ...], key: str) -> None:
    """Patterns of database names as a stream's request can carry them. Raises ConfigError naming ``key``."""
    if sum(len(quote(pattern)) + len("filter=&") for pattern in patterns) > MAX_PATTERNS:
        raise ConfigError(f"{key}: more patterns than go into {MAX_PATTERNS} bytes of a URL")
    for pattern in patterns:
        if not 0 < len(pattern.encode()) <= MAX_PATTERN:
            raise ConfigError(f"{key}: {pattern[:40]!r} can match no database's name")
