"""What a node's ``http`` and ``lease`` sections say of certificates, tokens and databases, put together."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass

from litefs.cluster.peer import PeerSettings
from litefs.config import Config, HTTPConfig
from litefs.tls import ClientTLS, ServerTLS
from litefs.tokens import Tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Security:
    """``tokens`` and ``tls`` (None: plain HTTP) of the server, ``peer`` of the connections to other nodes."""

    tokens: Tokens
    tls: ServerTLS | None
    peer: PeerSettings

    @classmethod
    def of(cls, config: Config) -> Security:
        """Reads certificates and tokens, and warns of what is probably not meant. Raises ConfigError."""
        http, lease = config.http, config.lease
        tokens = Tokens(http.auth_token, http.tokens)
        client = ClientTLS(http.tls)
        if http.tls.ca is not None or http.tls.serves:
            client.context("https:")  # so that a mistake is found now, and not when another node leads
        _warn(http)
        peer = PeerSettings(tokens, client, lease.databases, lease.candidate)
        return cls(tokens, ServerTLS(http.tls) if http.tls.serves else None, peer)


def _warn(http: HTTPConfig) -> None:
    if http.tls.serves:
        return
    if http.tls.ca is not None:
        log.warning("http.tls without cert and key: connections to others only, this node serves plain HTTP")
    if http.auth_token is not None and not _is_loopback(http.host_port[0]):
        log.warning("http.auth-token without http.tls: the token travels unencrypted")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
