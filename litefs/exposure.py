"""What the fs process shows of the databases that this node installs or removes, and that it has done so."""

from __future__ import annotations

from collections.abc import Callable

import trio

from litefs.errors import LiteFSError
from litefs.link.messages import Exposed, ExposedAck, Forget, Forgotten, Message

ANSWER_SECONDS = 10.0
"""How long the fs process may take to show a database that was installed, or to let go of one."""


class Exposure:
    """Asks the fs process, by ``post``, and waits for its answers, which come by ``message``."""

    def __init__(self, post: Callable[[Message], None]) -> None:
        self._post = post
        self._exposed: dict[str, trio.Event] = {}
        self._forgotten: dict[str, trio.Event] = {}

    async def expose(self, name: str) -> None:
        """Have a database shown. Raises LiteFSError if that is not answered."""
        await self._acknowledged(Exposed(name), self._exposed, "did not show the database")

    async def forget(self, name: str, readers: bool) -> None:
        """Have it let go, as :class:`Forget` says. Raises LiteFSError if that is not answered."""
        await self._acknowledged(Forget(name, readers), self._forgotten, "did not let go of the database")

    def message(self, message: ExposedAck | Forgotten) -> None:
        """The fs process has done it."""
        waiting = self._exposed if isinstance(message, ExposedAck) else self._forgotten
        waiting.pop(message.name, trio.Event()).set()

    async def _acknowledged(
        self, message: Exposed | Forget, waiting: dict[str, trio.Event], failure: str
    ) -> None:
        event = waiting[message.name] = trio.Event()
        self._post(message)
        with trio.move_on_after(ANSWER_SECONDS):
            await event.wait()
            return
        raise LiteFSError(f"{message.name}: the fs process {failure}")
