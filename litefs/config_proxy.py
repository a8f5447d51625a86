"""``proxy``: the section of ``litefs.yml`` about the reverse proxy before the application."""

from __future__ import annotations

from litefs.config_types import Duration, Section
from litefs.errors import ConfigError

FORWARD, FLY_REPLAY = "forward", "fly-replay"


class ProxyConfig(Section, frozen=True):
    """The HTTP proxy before the application; there is none without ``target``.

    A timeout of 0 is none. ``addr`` and ``target`` are ``HOST:PORT``.
    """

    addr: str = ""
    target: str = ""
    db: str | tuple[str, ...] = ""
    """The database whose position is in the cookie; ours: or a list of them."""
    max_lag: Duration = Duration(10)
    debug: bool = False
    passthrough: tuple[str, ...] = ()
    always_forward: tuple[str, ...] = ()
    redirect: str = FORWARD
    """Ours: what a replica does with a write: ``forward`` it to the primary, or answer ``fly-replay``."""
    primary_redirect_timeout: Duration = Duration(5)
    read_timeout: Duration = Duration(0)
    read_header_timeout: Duration = Duration(10)
    write_timeout: Duration = Duration(0)
    idle_timeout: Duration = Duration(30)

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
