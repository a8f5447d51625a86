"""Tells Fly.io which role its machine has, so that its tools and its proxy can show and use it.

The Machines API on a socket inside each machine: https://fly.io/docs/machines/api/.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import trio

from litefs.types import Role

logger = logging.getLogger(__name__)

SOCKET = Path("/.fly/api")
TIMEOUT = 2.0
TRIES = 6
RETRY_SECONDS = 1.0


class MachineRole:
    """Sets ``role`` in the machine's metadata to ``primary`` or ``replica``; a newer report ends an older one
    that is still under way."""

    def __init__(self, app: str, machine: str, socket: Path = SOCKET) -> None:
        self._path = f"/v1/apps/{quote(app, safe='')}/machines/{quote(machine, safe='')}/metadata/role"
        self._socket = socket
        self._value = ""
        self._changed = trio.Event()
        self._attempt = trio.CancelScope()

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> MachineRole | None:
        """This machine's, whatever the lease; None outside Fly.io."""
        app, machine = environment.get("FLY_APP_NAME"), environment.get("FLY_MACHINE_ID")
        return cls(app, machine) if app and machine else None

    def report(self, role: Role) -> None:
        """Have :meth:`run` tell it, soon."""
        value = "primary" if role is Role.PRIMARY else "replica"
        if value != self._value:
            self._value = value
            self._changed.set()
            self._attempt.cancel()

    async def run(self) -> None:
        """Send what is reported, until cancelled. What cannot be sent is logged and given up."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            with trio.CancelScope() as self._attempt:
                await self._send(self._value)

    async def _send(self, value: str) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
        problem = ""
        async with httpx.AsyncClient(
            transport=transport, timeout=None, base_url="http://localhost"
        ) as client:
            for attempt in range(TRIES):
                if attempt:
                    await trio.sleep(RETRY_SECONDS)
                try:
                    with trio.fail_after(TIMEOUT):
                        response = await client.post(self._path, json={"value": value})
                    if response.is_success:
                        return
                    problem = f"status {response.status_code}"
                except trio.TooSlowError:
                    problem = f"no answer within {TIMEOUT:g} s"
                except httpx.HTTPError as error:
                    problem = str(error) or type(error).__name__
        logger.warning("the role %r could not be told to Fly.io's %s: %s", value, self._socket, problem)
