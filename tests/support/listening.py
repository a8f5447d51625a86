"""A listener to ``GET /events`` of a node, in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx

from tests.support.node import Node
from tests.support.processes import wait_until

SECONDS = 15.0


class Listening:
    """``with Listening(node) as heard``: ``heard.events`` grows as they come; ``init`` is there at once."""

    def __init__(self, node: Node, query: str = "") -> None:
        self.events: list[dict[str, Any]] = []
        self._client = httpx.Client(timeout=httpx.Timeout(SECONDS, read=None))
        self._stream = self._client.stream("GET", f"{node.url}/events{query}")
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Listening:
        self._response = self._stream.__enter__()
        assert self._response.status_code == 200
        self._thread.start()
        wait_until(lambda: bool(self.events), SECONDS, "the first event")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._thread.join(SECONDS)

    def _read(self) -> None:
        try:
            for line in self._response.iter_lines():
                if line:
                    self.events.append(json.loads(line))
        except (httpx.TransportError, httpx.StreamError, OSError, ValueError, RuntimeError):
            return  # the node is gone, or the test has ended

    def of(self, kind: str, db: str = "") -> list[dict[str, Any]]:
        """The data of events of that type, of one database or of the node."""
        return [one["data"] for one in list(self.events) if (one["type"], one.get("db", "")) == (kind, db)]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until that is so."""
        wait_until(condition, SECONDS, f"{what}; heard: {self.events[-5:]}", 0.02)
