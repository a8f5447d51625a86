"""The ``lease`` section of ``litefs.yml``, and what machine and Fly.io's environment tell about it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from litefs.config_types import Duration, Section
from litefs.errors import ConfigError

LEASE_TYPES = ("consul", "fly", "object", "static")
MIN_TTL = 10.0
MAX_TTL = 86400.0
"""Seconds that Consul takes as the TTL of a session."""
MAX_LOCK_DELAY = 60.0
MAX_TAKE_BACK = 60.0


class ConsulConfig(Section, frozen=True):
    """The Consul lease ([more](leases.md#consul))."""

    url: str = ""
    """`http://:TOKEN@HOST:PORT/PREFIX`; without it `CONSUL_HTTP_ADDR`, or the agent on this machine."""
    key: str = ""
    """The key that the primary locks, the same on all nodes of a cluster and its own for each cluster."""
    ttl: Duration = Duration(10)
    """How long the session of a dead node stays in Consul. At least 10s; it does not delay a failover."""
    lock_delay: Duration = Duration(1)
    """How long Consul keeps the key of a dead primary from the next one."""


class ObjectConfig(Section, frozen=True):
    """Ours: the lease in an object store, or in a directory for nodes of one machine
    ([more](leases.md#object-store))."""

    url: str = ""
    """Ours: `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or `file:///PATH`."""
    key: str = "litefs"
    """Ours: the name below it, the same on all nodes of a cluster."""

    @property
    def directory(self) -> str | None:
        """The path of a ``file:`` URL; None for an object store."""
        url = urlsplit(self.url)
        return unquote(url.path) if url.scheme == "file" else None

    def validate(self) -> None:
        """Raises ConfigError."""
        if "://" not in self.url:
            raise ConfigError("lease.object.url: write a URL such as s3://bucket/prefix or file:///path")
        if self.directory is not None and urlsplit(self.url).netloc not in ("", "localhost"):
            raise ConfigError(f"lease.object.url: write file:///path, got {self.url!r}")
        if any(part in ("", ".", "..") for part in self.key.split("/")):
            raise ConfigError(f"lease.object.key: {self.key!r} cannot be part of a path")


class LeaseConfig(Section, frozen=True):
    """Who is primary ([leases](leases.md), [failover](failover.md)).

    With `static`, `candidate: true` is the primary itself; on the others `hostname` and `advertise-url` name
    the primary. The other types elect it, and the two name this node.
    """

    type: str = ""
    """Required: `static` or `consul`, or `fly` or `object`, which are ours."""
    hostname: str = ""
    """What `.primary` shows on the other nodes; without it, but for `static`, this machine's name."""
    advertise_url: str = ""
    """Where the other nodes reach it; without it, but for `static`, the host name and the port of
    `http.addr`."""
    candidate: bool = True
    """Whether this node may become primary."""
    promote: bool = False
    """A candidate that has caught up after its start asks the primary for its role. Not with `static`."""
    reconnect_delay: Duration = Duration(1)
    """Between two attempts to reach the primary."""
    demote_delay: Duration = Duration(10)
    """How long open transactions may keep a node that lost its role from being a replica; then they fail."""
    databases: tuple[str, ...] = ()
    """What this replica asks for, as patterns; none: all. Not on candidates."""
    consul: ConsulConfig = ConsulConfig()
    """Of type `consul`."""
    object: ObjectConfig = ObjectConfig()
    """Ours: of type `object`."""
    grace: Duration = Duration(5)
    """Ours: how long commits wait for a lease that cannot be renewed, before they are refused."""
    take_back_timeout: Duration = Duration(5)
    """Ours: how long a static primary waits, after its machine went down, for replicas that have commits
    which its disk has lost. `0s` to `1m`."""

    def with_defaults(self, scheme: str, port: int, environment: Mapping[str, str]) -> LeaseConfig:
        """With what the place tells that the file does not: this machine's name, ``scheme`` and ``port`` of
        its HTTP server; on Fly.io everything. Raises ConfigError."""
        if self.type == "fly":
            return self._on_fly(scheme, port, environment)
        if self.type not in ("consul", "object"):
            return self
        hostname = self.hostname or socket.gethostname()
        return msgspec.structs.replace(
            self, hostname=hostname, advertise_url=self.advertise_url or f"{scheme}://{hostname}:{port}"
        )

    def _on_fly(self, scheme: str, port: int, environment: Mapping[str, str]) -> LeaseConfig:
        """Fly.io's Consul, the machine's private name, and candidates only in the primary region.

        Variables: https://fly.io/docs/machines/runtime-environment/. FLY_CONSUL_URL is set by
        ``fly consul attach``, PRIMARY_REGION from ``primary_region`` of ``fly.toml``.
        """
        needed = ["FLY_APP_NAME", "FLY_REGION", "PRIMARY_REGION"]
        if not self.consul.url:
            needed.append("FLY_CONSUL_URL")
        missing = [name for name in needed if not environment.get(name)]
        if missing:
            raise ConfigError(f"lease type 'fly' needs {', '.join(missing)} in the environment")
        app = environment["FLY_APP_NAME"]
        machine = environment.get("FLY_MACHINE_ID") or environment.get("FLY_ALLOC_ID") or socket.gethostname()
        return msgspec.structs.replace(
            self,
            hostname=self.hostname or machine,
            advertise_url=self.advertise_url or f"{scheme}://{machine}.vm.{app}.internal:{port}",
            candidate=self.candidate and environment["FLY_REGION"] == environment["PRIMARY_REGION"],
            consul=msgspec.structs.replace(
                self.consul,
                url=self.consul.url or environment["FLY_CONSUL_URL"],
                key=self.consul.key or f"litefs/{app}",
            ),
        )

    def validate(self) -> None:
        """Raises ConfigError; the messages are Go's where Go has one."""
        if self.type not in LEASE_TYPES:
            raise ConfigError(
                f"invalid lease type, must be one of {', '.join(LEASE_TYPES)}, got: {self.type!r}"
            )
        if self.databases and self.candidate:
            raise ConfigError("cannot specify a database replication filter on candidate nodes")
        if self.type == "static" and not self.candidate and not self.advertise_url:
            raise ConfigError("a static lease on a replica needs lease.advertise-url, the URL of the primary")
        if self.type in ("consul", "fly"):
            self._validate_consul()
        if self.type == "object":
            self.object.validate()
        if self.grace < 0:
            raise ConfigError("lease.grace must not be negative")
        if not 0 <= self.take_back_timeout <= MAX_TAKE_BACK:
            raise ConfigError(f"lease.take-back-timeout must be from 0s to 1m, got {self.take_back_timeout}")

    def _validate_consul(self) -> None:
        consul = self.consul
        if not consul.key.strip("/"):
            raise ConfigError("must specify a consul key")
        if consul.key.strip("/") != consul.key:
            raise ConfigError(f"lease.consul.key: {consul.key!r} must not begin or end with a slash")
        if not MIN_TTL <= consul.ttl <= MAX_TTL:
            raise ConfigError(f"lease.consul.ttl: Consul takes 10s to 24h, got {consul.ttl}")
        if not 0 <= consul.lock_delay <= MAX_LOCK_DELAY:
            raise ConfigError(f"lease.consul.lock-delay: Consul takes 0s to 1m, got {consul.lock_delay}")
