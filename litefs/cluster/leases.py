"""The lease that a configuration asks for. What a kind needs is imported only with it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from litefs.cluster.lease import Lease, Timing
from litefs.cluster.object import ObjectLease, ObjectStore
from litefs.config import Config
from litefs.config_lease import ConsulConfig, ObjectConfig
from litefs.errors import ConfigError


def make_lease(config: Config) -> Lease:
    """The lease of ``lease.type``, not yet connected. Raises ConfigError, also for ``static``, which elects
    nobody."""
    if config.lease.type == "object":
        return object_lease(config.lease.object)
    if config.lease.type in ("consul", "fly"):
        return consul_lease(config.lease.consul)
    raise ConfigError(f"a lease of type {config.lease.type!r} elects nobody")


def consul_lease(config: ConsulConfig, timing: Timing | None = None) -> Lease:
    """A lease in Consul. Raises ConfigError."""
    from litefs.cluster.consul import ConsulLease

    return ConsulLease(config, timing)


def object_lease(config: ObjectConfig, timing: Timing | None = None) -> Lease:
    """A lease in a directory (``file:///path``) or an object store (``s3://bucket/prefix``, ``gs://``,
    ``az://`` and whatever else obstore reads). Raises ConfigError."""
    timing = timing or Timing()
    store: ObjectStore
    url = urlsplit(config.url)
    if url.scheme == "file":
        if url.netloc not in ("", "localhost"):
            raise ConfigError(f"lease.object.url: write file:///path, got {config.url!r}")
        from litefs.cluster.directory import DirectoryStore

        store = DirectoryStore(Path(unquote(url.path)), config.key)
    else:
        from litefs.cluster.cloud import CloudStore

        store = CloudStore(config.url, config.key, timing.term / 2)
    return ObjectLease(store, timing)
