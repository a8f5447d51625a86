"""What the Consul lease asks of Consul, as blocking calls through python-consul2.

Values: at most 512 KiB in one transaction, base64 included. Sessions: TTL from 10 s to 24 h; Consul lets one
live for up to twice its TTL. API: https://developer.hashicorp.com/consul/api-docs.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import consul

from litefs.errors import ConfigError

ERRORS: tuple[type[Exception], ...] = (consul.ConsulException, ValueError)
"""What calls raise beside OSError; ValueError: an answer that is not Consul's."""

_SESSION_NAME = "litefs"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as one consistent read found it; index 0 if there is no such key."""

    index: int = 0
    value: bytes = b""
    session: str = ""


class Address(NamedTuple):
    """Where Consul is. ``prefix``: of all keys, without slashes at its ends."""

    scheme: str
    host: str
    port: int
    token: str
    prefix: str


def parse_url(url: str, environment: Mapping[str, str]) -> Address:
    """``http://:TOKEN@HOST:PORT/PREFIX``, as Go LiteFS reads it: the password is the ACL token, else
    CONSUL_HTTP_TOKEN; without a URL it is CONSUL_HTTP_ADDR or the local agent. Raises ConfigError."""
    text = url or environment.get("CONSUL_HTTP_ADDR") or "http://127.0.0.1:8500"
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        port = 0
    if not port or not parts.hostname:
        # Not the URL: it may hold a token.
        raise ConfigError("lease.consul.url: expected http://HOST:PORT or https://HOST")
    token = unquote(parts.password or "") or environment.get("CONSUL_HTTP_TOKEN", "")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(parts.scheme, host, port, token, unquote(parts.path).strip("/"))


class Client:
    """Calls that raise OSError or one of ``ERRORS``; each takes at most about ``seconds``."""

    def __init__(self, address: Address, seconds: float) -> None:
        self._seconds = seconds
        self._address = address
        self._consul = _Consul(address, seconds)

    def read(self, key: str) -> Entry:
        """A consistent read."""
        return _entry(self._consul.kv.get(key, consistency="consistent"))

    def watch(self, key: str, index: int, wait: float) -> Entry:
        """The same once the key has another index, or after ``wait`` seconds and up to a sixteenth more."""
        watching = _Consul(self._address, wait * 17 / 16 + self._seconds)
        try:
            answer = watching.kv.get(
                key, index=index, wait=f"{max(1, round(wait * 1000))}ms", consistency="consistent"
            )
        finally:
            watching.close()
        return _entry(answer)

    def transact(self, *operations: dict[str, Any]) -> int | None:
        """Do all operations (:func:`lock` and so on) or none. The index they left; None if one of them does
        not apply to what is stored now."""
        try:
            done = self._consul.txn.put([{"KV": operation} for operation in operations])
        except consul.base.ClientError as error:
            code, _, body = str(error).partition(" ")
            if code != "409":
                raise
            reasons = [str(found["What"]) for found in json.loads(body)["Errors"]]
            if any("ermission denied" in reason for reason in reasons):
                raise consul.ACLPermissionDenied(reasons[0]) from None
            return None
        return max(int(result["KV"]["ModifyIndex"]) for result in done["Results"])

    def create_session(self, node: str, ttl: float, lock_delay: float) -> str:
        """A new session's id; ``node``: whose it is, "" for the agent's own."""
        if node:
            self._consul.catalog.register(node, "localhost")
        session: str = self._consul.session.create(
            name=_SESSION_NAME,
            node=node or None,
            # No health check: a session ends by its TTL, or when it is destroyed.
            checks=[],
            lock_delay=float(lock_delay),
            behavior="delete",
            ttl=float(ttl),
        )
        return session

    def renew_session(self, session: str) -> bool:
        """Start its TTL anew; False if it is gone."""
        try:
            self._consul.session.renew(session)
        except consul.NotFound:
            return False
        return True

    def destroy_session(self, session: str) -> None:
        """End it; its lock's key goes, and cannot be locked for the session's lock delay."""
        self._consul.session.destroy(session)

    def put_new(self, key: str, value: str) -> None:
        """Store a key unless there is one."""
        self._consul.kv.put(key, value, cas=0)

    def close(self) -> None:
        """Close idle connections."""
        self._consul.close()


def lock(key: str, session: str, value: bytes) -> dict[str, Any]:
    """Lock a key that no other session holds."""
    return {"Verb": "lock", "Key": key, "Session": session, "Value": _text(value)}


def unlock(key: str, session: str) -> dict[str, Any]:
    """Give up a lock that the session holds; the value goes, the key stays."""
    return {"Verb": "unlock", "Key": key, "Session": session, "Value": ""}


def check_session(key: str, session: str) -> dict[str, Any]:
    """Fail unless the session holds the key's lock."""
    return {"Verb": "check-session", "Key": key, "Session": session}


def compare_and_set(key: str, index: int, value: bytes) -> dict[str, Any]:
    """Fail unless the key has this index, 0: does not exist."""
    return {"Verb": "cas", "Key": key, "Index": index, "Value": _text(value)}


class _Consul(consul.Consul):  # type: ignore[misc] # without types
    """python-consul2's client, as configured: its own constructor lets the environment go first."""

    def __init__(self, address: Address, seconds: float) -> None:
        certificate = os.environ.get("CONSUL_CLIENT_CERT")
        self.http = self.http_connect(
            address.host,
            address.port,
            address.scheme,
            verify=_verify(),
            cert=(certificate, os.environ.get("CONSUL_CLIENT_KEY")) if certificate else None,
            timeout=seconds,
        )
        self.scheme = address.scheme
        self.token = address.token
        self.dc = None
        self.consistency = "default"
        self.kv = self.KV(self)
        self.session = self.Session(self)
        self.txn = self.Txn(self)
        self.catalog = self.Catalog(self)

    def close(self) -> None:
        """Close idle connections."""
        self.http.session.close()


def _verify() -> bool | str:
    """What Consul's own tools make of the environment: verify with a CA file, with the system's, or not."""
    if os.environ.get("CONSUL_HTTP_SSL_VERIFY", "true").lower() in ("false", "0"):
        return False
    return os.environ.get("CONSUL_CACERT") or True


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _entry(answer: tuple[str, dict[str, Any] | None]) -> Entry:
    found = answer[1]
    if found is None:
        return Entry()
    return Entry(int(found["ModifyIndex"]), found["Value"] or b"", found.get("Session", ""))
