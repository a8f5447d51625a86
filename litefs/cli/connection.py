"""What commands that talk to a running node share: where it is, how to be let in, what its answers mean."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import msgspec
import trio

from litefs import config as configuration
from litefs.cli.flags import Arguments, Flag, UsageError
from litefs.cluster.probe import describe, speaks_something_else
from litefs.config import DEFAULT_PORT
from litefs.config_http import TLSConfig
from litefs.config_types import FilePath, Secret
from litefs.errors import AccessDenied, DatabaseNotFound, NotTrusted, PeerError
from litefs.tls import ClientTLS, failure
from litefs.tokens import Tokens, bearer

CONNECT_TIMEOUT = 10.0
GREETING_TIMEOUT = 5.0
"""Seconds that a node has to say who it is; what is not a node may never say anything."""

IDLE_TIMEOUT = 300.0
"""Seconds without a byte, in either direction, after which the node counts as gone."""

WORK_TIMEOUT = 3600.0
"""The same of a node that copies and checks a whole database before it says anything. Whether it lives is for
KEEPALIVE to tell."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A machine that is gone is noticed within half a minute."""

MAX_ERROR_TEXT = 4096
TOKEN_VARIABLE = "LITEFS_TOKEN"

FLAGS = (
    Flag("url", f"URL of a node (default http://localhost:{DEFAULT_PORT}, or as -config has it)", "URL"),
    Flag("config", "configuration of a node, of which URL, token and certificates are taken", "PATH"),
    Flag(
        "token", f"token to show, or file:PATH; better in ${TOKEN_VARIABLE}, which others cannot see", "TOKEN"
    ),
    Flag("ca", "authority of the node's certificate, in PEM (default: those of the system)", "PATH"),
    Flag("cert", "our certificate, in PEM, for a node that wants one", "PATH"),
    Flag("key", "its key, in PEM", "PATH"),
)


class RefusedByNode(PeerError):
    """The node answered with an error: ``status`` and its own words, ``reason``."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"invalid response: code={status}{f': {reason}' if reason else ''}")
        self.status = status
        self.reason = reason


class Primary(msgspec.Struct):
    """Of :class:`Info`."""

    hostname: str = ""


class Info(msgspec.Struct, rename="camel"):
    """What ``GET /info`` says of the node's role; other keys are not ours."""

    is_primary: bool
    candidate: bool = False
    primary: Primary = msgspec.field(default_factory=Primary)


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach one node; ``url`` has no slash at its end."""

    url: str
    tokens: Tokens = field(default_factory=Tokens)
    tls: ClientTLS = field(default_factory=lambda: ClientTLS(TLSConfig()))

    @classmethod
    def of(cls, arguments: Arguments) -> Connection:
        """As the flags say, before the environment, before ``-config``. Raises UsageError, ConfigError."""
        values = arguments.values
        url, tls, secret = f"http://localhost:{DEFAULT_PORT}", TLSConfig(), None
        if values["config"]:
            loaded = configuration.load(values["config"]).config
            url, tls, secret = own_url(loaded), loaded.http.tls, loaded.http.auth_token
        if bool(values["cert"]) != bool(values["key"]):
            raise UsageError("-cert and -key belong together")
        changed = {name: FilePath(values[name]) for name in ("ca", "cert", "key") if values[name]}
        token = values["token"] or os.environ.get(TOKEN_VARIABLE)
        return cls(
            (values["url"] or url).rstrip("/"),
            Tokens(Secret(token) if token else secret),
            ClientTLS(msgspec.structs.replace(tls, **changed)),
        )

    def client(self) -> httpx.Client:
        """A client that speaks HTTP/2 from its first byte, as every node does. Raises ConfigError."""
        token = self.tokens.own()
        return httpx.Client(
            headers={} if token is None else {"Authorization": bearer(token)},
            trust_env=False,
            transport=httpx.HTTPTransport(
                verify=self.tls.context(self.url),
                http1=False,
                http2=True,
                trust_env=False,
                socket_options=KEEPALIVE,
            ),
        )

    @contextlib.contextmanager
    def exchange(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        name: str | None = None,
        *,
        about: str = "",
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        content: Iterator[bytes] | None = None,
        timeout: float = IDLE_TIMEOUT,
    ) -> Iterator[httpx.Response]:
        """One request, about the database ``name``, or about one that ``path`` names; yields the open
        response of a success.

        ``query``: parameters beside the name. ``timeout``: seconds without a byte. Raises DatabaseNotFound
        for 404, NotTrusted for 401 and what is wrong with certificates, AccessDenied for 403, RefusedByNode
        for any other status, PeerError.
        """
        try:
            request = client.build_request(
                method,
                self.url + path,
                params=({} if name is None else {"name": name}) | (query or {}) or None,
                headers=headers,
                content=content,
                timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
            )
            with contextlib.closing(client.send(request, stream=True)) as response:
                self._check(response, name or about)
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failure(error) from None

    def greet(self, client: httpx.Client) -> Info:
        """Make sure, within seconds, that a LiteFS node answers. Raises PeerError if not."""
        with self.exchange(client, "GET", "/info", timeout=GREETING_TIMEOUT) as response:
            try:
                return msgspec.json.decode(response.read(), type=Info)
            except msgspec.MsgspecError as error:
                raise PeerError(f"{self.url} is not a LiteFS node: {error}") from None

    def _check(self, response: httpx.Response, name: str) -> None:
        status = response.status_code
        if status == httpx.codes.NOT_FOUND:
            if not name:
                raise DatabaseNotFound(f"no LiteFS node at {self.url}")
            raise DatabaseNotFound(f"database not found: {name}; `litefs databases` lists those of the node")
        if status == httpx.codes.UNAUTHORIZED:
            shown = "does not accept our token" if self.tokens.own() is not None else "wants a token"
            hint = f"give one in {TOKEN_VARIABLE}, by -token, or by http.auth-token of -config"
            raise NotTrusted(f"{self.url} {shown} (status 401): {hint}")
        if status == httpx.codes.FORBIDDEN:
            subject = f"database {name}" if name else "this"
            raise AccessDenied(f"{self.url}: our token is not for {subject} (status 403)")
        if status != httpx.codes.OK:
            raise RefusedByNode(status, _reason(response))

    def _failure(self, error: Exception) -> PeerError:
        """The error that says most of why an exchange failed."""
        if (found := failure(self.url, error)) is not None:
            return found
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            other = trio.run(speaks_something_else, self.url)
            if other is not None:
                return PeerError(f"{self.url}: {describe(other)}")
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError):
            reason += "; is the node running there? -url or -config says where it is"
        return PeerError(f"{self.url}: {reason}")


def own_url(config: configuration.Config) -> str:
    """Where the node of ``config`` says that it, or with a static lease its primary, can be reached."""
    if config.lease.advertise_url:
        return config.lease.advertise_url
    host, port = config.http.host_port
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if config.http.tls.serves else 'http'}://{host or 'localhost'}:{port}"


def _reason(response: httpx.Response) -> str:
    """The node's own words, bounded, in one line."""
    text = b""
    for chunk in response.iter_bytes(MAX_ERROR_TEXT):
        text += chunk
        if len(text) >= MAX_ERROR_TEXT:
            break
    return " ".join(text[:MAX_ERROR_TEXT].decode("utf-8", "replace").split())
