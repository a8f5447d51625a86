"""TLS contexts for the server and for connections to other nodes, and what a failed handshake means."""

from __future__ import annotations

import ssl

from litefs.config_http import TLSConfig
from litefs.errors import ConfigError, NotTrusted, PeerError
from litefs.fromfiles import FromFiles

ALPN = ("h2", "http/1.1")
"""What the server speaks, the best first (RFC 7301); our own clients insist on the first."""

_VERIFY_HINTS = {
    9: "is not valid yet: look at the clocks of both nodes",
    10: "has expired: renew it there, the files are read again by themselves",
    18: "signs itself: let http.tls.ca (or -ca) name it, or its authority",
    19: "is of an authority that this node does not know: let http.tls.ca (or -ca) name that one",
    20: "is of an authority that this node does not know: let http.tls.ca (or -ca) name that one",
    21: "is of an authority that this node does not know: let http.tls.ca (or -ca) name that one",
    62: "is for another host name: use a name of the certificate in the URL (lease.advertise-url)",
    64: "is for another address: use a name of the certificate in the URL (lease.advertise-url)",
}
"""By OpenSSL's code (X509_STORE_CTX_get_error(3))."""

_REASON_HINTS = {
    "CERTIFICATE_REQUIRED": "the peer wants a certificate from us: set http.tls.cert and http.tls.key",
    "HANDSHAKE_FAILURE": "the peer gives up; if it wants a certificate from us, set http.tls.cert and key",
    "UNKNOWN_CA": "the peer does not know the authority of our certificate (http.tls.ca there)",
    "CERTIFICATE_EXPIRED": "the peer says that our certificate has expired: renew http.tls.cert",
    "CERTIFICATE": "the peer does not accept our certificate",
    "WRONG_VERSION_NUMBER": "the peer speaks no TLS: let its URL begin with http://, or set http.tls there",
    "UNSUPPORTED_PROTOCOL": "the peer speaks only versions of TLS before 1.2",
    "PROTOCOL_VERSION": "the peer accepts no version of TLS that we speak (1.2 and later)",
}
"""By a part of OpenSSL's reason, the first that is in it."""


class ServerTLS:
    """The server's context, of ``http.tls``."""

    def __init__(self, config: TLSConfig) -> None:
        """``config`` must have ``cert``. Raises ConfigError if a file cannot be used."""
        self._files = FromFiles("http.tls", _paths(config), lambda: _server_context(config))

    def context(self) -> ssl.SSLContext:
        """For the next connection: of the files as they are now."""
        return self._files.get()


class ClientTLS:
    """The context for connections to other nodes, of ``http.tls``; made at first use."""

    def __init__(self, config: TLSConfig) -> None:
        self._config = config
        self._files: FromFiles[ssl.SSLContext] | None = None

    def context(self, url: str) -> ssl.SSLContext:
        """For the next connection to ``url``: of the files as they are now. Raises ConfigError at first use.

        Without TLS it trusts nobody: HTTP clients insist on a context, and their own one reads some hundred
        authorities.
        """
        if not url.lower().startswith("https:"):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._files is None:
            self._files = FromFiles("http.tls", _paths(self._config), lambda: _client_context(self._config))
        return self._files.get()


def failure(url: str, error: BaseException) -> PeerError | None:
    """What a failure of TLS towards ``url`` means, if there is one among the causes of ``error``.

    NotTrusted, with what to do, for what stays so until somebody does it; PeerError for anything else, as
    when the peer dies in the middle of a handshake.
    """
    found = _ssl_error(error)
    if found is None:
        return None
    if isinstance(found, ssl.SSLCertVerificationError):
        hint = _VERIFY_HINTS.get(found.verify_code, f"is not accepted: {found.verify_message}")
        return NotTrusted(f"{url}: the peer's certificate {hint}")
    reason = found.reason or str(found)
    for word, hint in _REASON_HINTS.items():
        if word in reason:
            return NotTrusted(f"{url}: {hint}")
    return PeerError(f"{url}: TLS failed: {reason}")


def _ssl_error(error: BaseException | None) -> ssl.SSLError | None:
    """HTTP clients wrap it several times."""
    for _ in range(16):
        if error is None or isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _paths(config: TLSConfig) -> list[str]:
    return [path for path in (config.cert, config.key, config.ca) if path is not None]


def _server_context(config: TLSConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    _load_chain(context, config)
    if config.ca is not None and config.verify_clients:
        _load_authority(context, config.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client_context(config: TLSConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.ca is not None:
        _load_authority(context, config.ca)
    else:
        context.load_default_certs()
    if config.cert is not None:
        _load_chain(context, config)
    return context


def _load_chain(context: ssl.SSLContext, config: TLSConfig) -> None:
    assert config.cert is not None
    _require_readable("cert", config.cert)
    if config.key is not None:
        _require_readable("key", config.key)

    def no_password() -> str:
        raise ConfigError(f"http.tls.key: {config.key} is encrypted; keep the key without a passphrase")

    try:
        context.load_cert_chain(config.cert, config.key, password=no_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"http.tls: {config.cert} and {config.key} are no pair in PEM: {reason}") from error


def _load_authority(context: ssl.SSLContext, path: str) -> None:
    _require_readable("ca", path)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"http.tls.ca: {path} holds no certificate in PEM: {reason}") from error


def _require_readable(key: str, path: str) -> None:
    """OpenSSL names neither the file nor the reason."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"http.tls.{key}: cannot read {path}: {error.strerror}") from error
