"""``litefs.yml``: every key of Go LiteFS (v0.5) with its meaning and default, and ours as additions.

The text below a key is what docs/configuration.md says of it (tools/config_reference.py); that of a key which
Go LiteFS does not have begins with "Ours:".
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from litefs.config_backup import BackupConfig
from litefs.config_http import TLSConfig, TokenConfig, validate_patterns, validate_tls, validate_tokens
from litefs.config_lease import LeaseConfig
from litefs.config_proxy import ProxyConfig
from litefs.config_sections import (
    DataConfig,
    FuseConfig,
    LogConfig,
    ReplicationConfig,
    TracingConfig,
)
from litefs.config_types import Duration, Secret, split_command
from litefs.config_types import Section as _Section
from litefs.config_yaml import decode, expand_environment
from litefs.errors import ConfigError

DEFAULT_PORT = 20202
FILE_NAME = "litefs.yml"

MAX_SYNC_TIMEOUT = 8.0
"""Seconds: the kernel keeps the lock of a WAL while a commit's answer is held, and new connections wait."""


class ExecCommand(_Section, frozen=True):
    """One supervised command."""

    cmd: str
    """The command: quotes and backslashes as in a shell, no variables; for more, `sh -c '…'`."""
    if_candidate: bool = False
    """Leave it out on a node that is no candidate."""
    on_promote: str = ""
    """Ours: what tells the running command that its node became the primary: the name of a signal to it, or
    another command."""
    on_demote: str = ""
    """Ours: the same when its node is no longer the primary."""


OPENED = ("health", "page")
"""What ``http.open`` may name."""


class HTTPConfig(_Section, frozen=True):
    """The node's HTTP server, for the other nodes, the commands and whoever watches."""

    addr: str = f":{DEFAULT_PORT}"
    """`HOST:PORT` to listen on; without a host every interface."""
    snapshot_timeout: Duration = Duration(0)
    """How long the sending of one snapshot may take; `0s`: no limit, but a replica that takes nothing for a
    minute loses it."""
    tls: TLSConfig = TLSConfig()
    """Ours: certificates ([who may talk to a node](security.md))."""
    auth_token: Secret | None = None
    """Ours: the token that requests need, and that this node shows to others; without it none is needed."""
    tokens: tuple[TokenConfig, ...] = ()
    """Ours: more tokens that this node accepts, each for all databases or for some."""
    open: tuple[str, ...] = ()
    """Ours: what is answered without a token, too: `health`, `/healthz` and `/readyz` with the status alone;
    `page`, the files of the status page, which asks for a token itself."""

    @property
    def host_port(self) -> tuple[str, int]:
        """Host (empty: every interface) and port. Raises ConfigError."""
        return split_address(self.addr, "http.addr")


class Config(_Section, frozen=True):
    """All of ``litefs.yml``."""

    SEARCH_PATH: ClassVar[tuple[str, ...]] = (FILE_NAME, f"$HOME/{FILE_NAME}", f"/etc/{FILE_NAME}")

    exec: str | tuple[ExecCommand, ...] = ()
    """The application that the node runs: a command, or a list of which all but the last run to their end
    first. The node ends with the last one, with its exit code."""
    exit_on_error: bool = True
    """Stop the node when the application fails; else the node stays, to be looked at."""
    skip_sync: bool = False
    """Start the application at once, before the node has caught up with the primary."""
    strict_verify: bool = False
    """Compute the checksum of the whole database at each commit; for tests, it is slow."""
    data: DataConfig = DataConfig()
    """Where the data directory is and how long the log reaches back."""
    fuse: FuseConfig = FuseConfig()
    """The mount."""
    http: HTTPConfig = HTTPConfig()
    """The HTTP server."""
    proxy: ProxyConfig = ProxyConfig()
    """The HTTP proxy."""
    lease: LeaseConfig = LeaseConfig()
    """Who is primary."""
    replication: ReplicationConfig = ReplicationConfig()
    """Ours: synchronous replication."""
    backup: BackupConfig = BackupConfig()
    """The archive."""
    log: LogConfig = LogConfig()
    """The process log."""
    tracing: TracingConfig = TracingConfig()
    """The trace log."""

    @property
    def commands(self) -> tuple[ExecCommand, ...]:
        """``exec`` in its long form, whichever was written."""
        if isinstance(self.exec, str):
            return (ExecCommand(cmd=self.exec),) if self.exec else ()
        return self.exec

    @classmethod
    def for_dir(cls, directory: str | Path) -> Config:
        """One node with defaults and no file: ``litefs mount --dir DIR``.

        The data directory is the hidden sibling ``.NAME.litefs``; HTTP listens on loopback, on the usual port
        or, if that is taken, on a free one. Raises ConfigError for a directory that cannot have a sibling.
        """
        mount = Path(os.path.abspath(directory))
        if not mount.name:
            raise ConfigError(f"{directory}: choose a directory that has a parent")
        config = cls(
            fuse=FuseConfig(dir=str(mount)),
            data=DataConfig(dir=str(mount.parent / f".{mount.name}.litefs")),
            http=HTTPConfig(addr=f"127.0.0.1:{_usable_port('127.0.0.1', DEFAULT_PORT)}"),
            lease=LeaseConfig(type="static", hostname="localhost", candidate=True),
        )
        config.validate()
        return config

    def validate(self) -> None:
        """Check what no single field can know; the messages are Go's where Go has one. Raises ConfigError."""
        _validate_directories(self.fuse.dir, self.data.dir)
        self.lease.validate()
        validate_patterns(self.lease.databases, "lease.databases")
        _validate_replication(self.replication)
        if self.lease.type == "object" and self.lease.object.directory is not None:
            # A node must not need its own mount to become primary.
            _refuse_inside(
                os.path.abspath(self.lease.object.directory),
                os.path.abspath(self.fuse.dir),
                "lease.object.url",
            )
        if self.log.format not in ("text", "json"):
            raise ConfigError(f"invalid log format: {self.log.format!r}, must be 'text' or 'json'")
        self._validate_backup()
        self.proxy.validate()
        if self.proxy.target:
            split_address(self.proxy.addr, "proxy.addr")
            split_address(self.proxy.target, "proxy.target")
        if self.tracing.max_size < 1 or self.tracing.max_count < 0:
            raise ConfigError("tracing.max-size must be 1 MB or more, tracing.max-count not negative")
        if self.data.retention_bytes < 0:
            raise ConfigError(f"data.retention-bytes must not be negative, got {self.data.retention_bytes}")
        if self.data.retention_monitor_interval <= 0:
            raise ConfigError("data.retention-monitor-interval must be positive")
        split_address(self.http.addr, "http.addr")
        if unknown := [word for word in self.http.open if word not in OPENED]:
            raise ConfigError(f"http.open: {unknown[0]!r} is none of {', '.join(OPENED)}")
        validate_tls(self.http.tls)
        validate_tokens(self.http.auth_token, self.http.tokens)
        for command in self.commands:
            split_command(command.cmd)

    def _validate_backup(self) -> None:
        self.backup.validate()
        validate_patterns(self.backup.databases, "backup.databases")
        validate_patterns(self.backup.exclude, "backup.exclude")
        if self.backup.directory is not None:
            archive = os.path.abspath(self.backup.directory)
            _refuse_inside(archive, os.path.abspath(self.fuse.dir), "backup.path")
            _refuse_inside(archive, os.path.abspath(self.data.dir), "backup.path", "data")


class LoadedConfig(msgspec.Struct, frozen=True):
    """A configuration and the file it came from."""

    config: Config
    path: str


def load(path: str | None = None, *, expand_env: bool = True) -> LoadedConfig:
    """Find, read and check the configuration.

    Without ``path`` the first of ``./litefs.yml``, ``$HOME/litefs.yml``, ``/etc/litefs.yml`` is taken;
    with it there is no fallback. Raises ConfigError.
    """
    for candidate in [path] if path is not None else map(os.path.expandvars, Config.SEARCH_PATH):
        try:
            text = Path(candidate).read_text(encoding="utf-8")
        except FileNotFoundError:
            if path is not None:
                raise ConfigError(f"config file not found: {path}") from None
        except OSError as error:
            raise ConfigError(f"cannot read config file {candidate}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{candidate}: not valid YAML: no UTF-8 at byte {error.start}") from None
        else:
            config = parse(text, candidate, os.environ if expand_env else None)
            return LoadedConfig(config, os.path.abspath(candidate))
    raise ConfigError(
        f"config file not found; looked for {', '.join(Config.SEARCH_PATH)}. Name one by -config PATH, or "
        "try `litefs mount -dir DIR`, which needs none"
    )


def parse(text: str, origin: str, environment: Mapping[str, str] | None) -> Config:
    """Read and check a configuration's text; ``environment`` None leaves ``$`` alone. Raises ConfigError."""
    if environment is not None:
        text = expand_environment(text, environment)
    config = decode(text, Config, origin)
    try:
        scheme = "https" if config.http.tls.serves else "http"
        lease = config.lease.with_defaults(scheme, config.http.host_port[1], os.environ)
        config = msgspec.structs.replace(config, lease=lease)
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return config


def split_address(address: str, key: str) -> tuple[str, int]:
    """``HOST:PORT``, ``:PORT`` or ``[V6]:PORT`` as host and port; ``key`` names it in the ConfigError."""
    host, colon, port = address.rpartition(":")
    # The length first: a text of thousands of digits is no number for int().
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"{key}: expected HOST:PORT, got {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _validate_replication(replication: ReplicationConfig) -> None:
    if not 0 < replication.timeout <= MAX_SYNC_TIMEOUT:
        raise ConfigError(
            f"replication.timeout must be positive and at most {MAX_SYNC_TIMEOUT:g} s, got "
            f"{replication.timeout}: a held commit holds its database's write lock"
        )
    if replication.on_shortage not in ("refuse", "degrade"):
        raise ConfigError(
            f"replication.on-shortage must be 'refuse' or 'degrade', got {replication.on_shortage!r}"
        )


def _validate_directories(mount: str, data: str) -> None:
    """The node reads its data directory itself; through its own mount it would wait for itself forever."""
    if not mount:
        raise ConfigError("fuse directory required")
    if not data:
        raise ConfigError("data directory required")
    for directory in (mount, data):
        try:
            usable = b"\0" not in os.fsencode(directory)
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise ConfigError(f"{directory!r} cannot be the name of a directory")
    # By name first: resolving a path inside a mount that hangs would hang too.
    _refuse_overlap(os.path.abspath(mount), os.path.abspath(data))
    _refuse_overlap(_resolve_mount(mount), os.path.realpath(data))


def _refuse_overlap(mount: str, data: str) -> None:
    if mount == data:
        raise ConfigError("fuse directory and data directory cannot be the same path")
    common = os.path.commonpath([mount, data])
    if common == mount:
        raise ConfigError(f"the data directory {data} lies inside the fuse directory {mount}")
    if common == data:
        raise ConfigError(f"the fuse directory {mount} lies inside the data directory {data}")


def _refuse_inside(path: str, directory: str, key: str, what: str = "fuse") -> None:
    if os.path.commonpath([path, directory]) == directory:
        raise ConfigError(f"{key}: {path} lies inside the {what} directory {directory}")


def _resolve_mount(path: str) -> str:
    """``realpath`` that asks nothing of the mount at ``path``: its last component is only read as a link."""
    path = os.path.abspath(path)
    try:
        return os.path.realpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    except OSError:
        return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _usable_port(host: str, preferred: int) -> int:
    """``preferred`` if it can be bound now, else one that the kernel picks."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError(f"no free TCP port on {host}")
