"""Knowing at any moment who is primary, without asking: follows the node's events in a thread."""

from __future__ import annotations

import ssl
import threading

from litefs.client.feed import DISCONNECTED, Events, Source
from litefs.client.place import StrPath
from litefs.errors import LiteFSError, WaitTimeout


class NotReady(LiteFSError):
    """The node has not told yet, or its connection is broken: who is primary is not known."""


class PrimaryMonitor:
    """Whether a node is the primary, and which one is, as of its last word. A context manager."""

    def __init__(
        self, where: StrPath, *, token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """``where``, ``token``, ``tls``: as of :func:`litefs.client.events`. Raises NotOnMount, OSError."""
        # No database is called so: of these events only those about the role are wanted.
        self._events = Events(Source(where, ("\x01",), token=token, tls=tls))
        self._changed = threading.Condition()
        self._known: tuple[bool, str | None] | None = None
        self._failure: LiteFSError | None = None
        self._thread = threading.Thread(target=self._follow, name="litefs-primary", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for event in self._events:
                with self._changed:
                    if event.type in ("init", "primaryChange"):
                        self._known = (bool(event.data["isPrimary"]), event.data.get("hostname"))
                    elif event.type == DISCONNECTED:
                        self._known = None
                    self._changed.notify_all()
        except LiteFSError as error:
            with self._changed:
                self._failure, self._known = error, None
                self._changed.notify_all()

    def wait_ready(self, timeout: float = 5.0) -> None:
        """Until it is known who is primary. Raises WaitTimeout; LiteFSError if the node refuses to tell."""
        with self._changed:
            self._changed.wait_for(lambda: self._known is not None or self._failure is not None, timeout)
            if self._failure is not None:
                raise self._failure
            if self._known is None:
                raise WaitTimeout(f"the node did not tell within {timeout:g} s who is primary")

    @property
    def is_primary(self) -> bool:
        """Whether the node is the primary. Raises NotReady."""
        return self._now()[0]

    @property
    def hostname(self) -> str | None:
        """The primary's hostname as a replica is connected to it; None on the primary itself, and where no
        primary is known. Raises NotReady."""
        return self._now()[1]

    def _now(self) -> tuple[bool, str | None]:
        with self._changed:
            if self._known is None:
                raise NotReady("who is primary is not known: the node has not told yet, or is out of reach")
            return self._known

    def close(self) -> None:
        """End the thread. Harmless if repeated."""
        self._events.close()
        self._thread.join()

    def __enter__(self) -> PrimaryMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
