"""What systemd is told of a unit of ``Type=notify``: ready, stopping, the role, and that the node is alive.

The protocol is sd_notify(3) and sd_watchdog_enabled(3): datagrams of ``NAME=VALUE`` lines to the unix socket
that NOTIFY_SOCKET names, ``@`` at its beginning for an abstract one. Without that variable nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Self

import trio

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0
"""Between two looks whether the status has changed."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """The way to the service manager that started this process, if one did that wants to know."""

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        """``address``: as in NOTIFY_SOCKET, empty for none. ``watchdog``: seconds after which the manager
        takes a silent process for dead; None if it does not."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Self:
        """As the variables say, which are removed: the supervised command is not the unit's main process."""
        address, microseconds, pid = (environment.pop(name, "") for name in _VARIABLES)
        is_ours = microseconds.isdigit() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if is_ours else None)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self) -> None:
        """The node serves; units that come after this one are started."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The node has begun to stop."""
        self._send("STOPPING=1")

    async def run(self, status: Callable[[], str]) -> None:
        """Say that the node is alive, twice in the time of the watchdog, and its status when that has
        changed; until cancelled."""
        if not self.is_wanted:
            return
        interval = STATUS_SECONDS if self._watchdog is None else min(STATUS_SECONDS, self._watchdog / 2)
        said = ""
        while True:
            lines = ["WATCHDOG=1"] if self._watchdog is not None else []
            if (now := status()) != said:
                lines.append(f"STATUS={now}")
                said = now
            if lines:
                self._send(*lines)
            await trio.sleep(interval)

    def _send(self, *lines: str) -> None:
        if not self.is_wanted:
            return
        try:
            # Never waiting: a manager that does not read must not hold the node up.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
                channel.sendto("\n".join(lines).encode(), self._address)
        except (OSError, ValueError) as error:
            log.debug("systemd was not told %s: %s", lines[0], error)
