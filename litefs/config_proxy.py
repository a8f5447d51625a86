"""``proxy``: the section of ``litefs.yml`` about the reverse proxy before the application."""

from __future__ import annotations

from litefs.config_types import Duration, Section
from litefs.errors import ConfigError

FORWARD, FLY_REPLAY = "forward", "fly-replay"


class ProxyConfig(Section, frozen=True):
    """The HTTP proxy before the application; there is none without `target`. A timeout of `0s` is none."""

    addr: str = ""
    """`HOST:PORT` to listen on."""
    target: str = ""
    """`HOST:PORT` of the application."""
    db: str | tuple[str, ...] = ""
    """The database whose position clients carry in a cookie, to read their own writes on any node; it may
    also be a list of them (ours)."""
    max_lag: Duration = Duration(10)
    """Lag from which `/litefs/health` answers 503; `0s`: never."""
    debug: bool = False
    """Log each request."""
    passthrough: tuple[str, ...] = ()
    """Paths that go to the application as they are, on every node; `*` stands for any text."""
    always_forward: tuple[str, ...] = ()
    """Paths whose GET requests are treated as writes."""
    redirect: str = FORWARD
    """Ours: what a replica does with a write: `forward` it to the primary, or answer `fly-replay`."""
    primary_redirect_timeout: Duration = Duration(5)
    """How long a write waits for a primary."""
    read_timeout: Duration = Duration(0)
    """For reading a whole request."""
    read_header_timeout: Duration = Duration(10)
    """For reading the headers of a request."""
    write_timeout: Duration = Duration(0)
    """For writing a whole answer."""
    idle_timeout: Duration = Duration(30)
    """How long a connection may wait for its next request."""

    @property
    def databases(self) -> tuple[str, ...]:
        """``db`` as a list."""
        return (self.db,) if isinstance(self.db, str) else self.db

    def validate(self) -> None:
        """The messages are Go's where Go has one. Raises ConfigError."""
        if self.redirect not in (FORWARD, FLY_REPLAY):
            raise ConfigError(f"proxy.redirect must be '{FORWARD}' or '{FLY_REPLAY}', got {self.redirect!r}")
        if not self.target:
            return
        if not self.databases or not all(self.databases):
            raise ConfigError("proxy database name required")
        if len({*self.databases}) < len(self.databases):
            raise ConfigError("proxy.db: a database is named twice")
        if not self.addr:
            raise ConfigError("proxy bind address required")
