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
    """Lag beyond which `GET /litefs/health` is 503, else 200; `0s`: never."""
    debug: bool = False
    """Log each request: which way it went, how long it took."""
    passthrough: tuple[str, ...] = ()
    """Paths that go to the application here, on every node, whatever they are; `*` stands for any text."""
    always_forward: tuple[str, ...] = ()
    """Paths whose GET and HEAD requests are treated as writes."""
    redirect: str = FORWARD
    """Ours: what a replica does with a write: `forward` it to the primary, or answer with the header
    `fly-replay`, so that Fly.io's edge repeats the request at the primary."""
    primary_redirect_timeout: Duration = Duration(5)
    """How long a write waits for a primary; then 503."""
    read_timeout: Duration = Duration(0)
    """For reading a whole request; then 408."""
    read_header_timeout: Duration = Duration(10)
    """For reading the headers of a request; then 408."""
    write_timeout: Duration = Duration(0)
    """From the headers of a request to the end of its answer; then 504."""
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
