"""When the supervised commands of a node run: once it is ready, and until it stops."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import trio

from litefs.config import Config
from litefs.leading import Leading
from litefs.notify import Notifier
from litefs.proxying import Proxying
from litefs.supervise import Supervisor

log = logging.getLogger("litefs.node")


class Application:
    """What is supervised, and its proxy."""

    def __init__(
        self,
        config: Config,
        supervisor: Supervisor,
        manager: Notifier,
        proxying: Proxying,
        leading: Leading,
        ready: trio.Event,
        stop: trio.Event,
    ) -> None:
        """``ready``: all that the primary has was here once; ``stop``: the node is to end."""
        self._config = config
        self._supervisor = supervisor
        self._manager = manager
        self._proxying = proxying
        self._leading = leading
        self._ready = ready
        self._stop = stop

    async def run(self, ending: Callable[[], signal.Signals]) -> int:
        """Wait until ready, then run what is supervised; without commands wait for the end. Returns the exit
        code. ``ending``: what the commands get once the node is to end."""
        code = 0
        async with trio.open_nursery() as nursery:

            async def supervise() -> None:
                nonlocal code
                code = await self._supervise(nursery)
                nursery.cancel_scope.cancel()

            nursery.start_soon(supervise)
            await self._stop.wait()
            await self._proxying.finish()
            self._supervisor.terminate(ending())
            if not self._ready.is_set():
                nursery.cancel_scope.cancel()
        return code

    async def _supervise(self, nursery: trio.Nursery) -> int:
        if self._config.skip_sync:
            nursery.start_soon(self._caught_up)
        else:
            await self._caught_up()
        log.info("ready as %s", self._leading.role)
        self._manager.ready()
        self._proxying.begin()
        code = await self._supervisor.run(self._config.lease.candidate)
        await self._proxying.finish()
        if code and not self._config.exit_on_error:
            log.error("the command failed with exit status %d; exit-on-error is false", code)
            await self._stop.wait()
        return code

    async def _caught_up(self) -> None:
        """Wait until all that the primary has is here; then take its role, if the configuration says so."""
        await self._ready.wait()
        await self._leading.promote_at_start()
