"""One of the two directories that a history runs in, with the client processes that use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.model.client import Outcome
from tests.model.content import Content
from tests.model.steps import ROOT, Step
from tests.support.processes import Client, children, proc_stat, wait_until

ANSWER_SECONDS = 30.0


class Side:
    """Runs steps below ``root``. Paths in arguments and answers are exchanged for ``ROOT``. A context."""

    def __init__(self, root: str, log: Path) -> None:
        self.root = root
        self._log = log
        self._clients: dict[str, Client] = {}
        self._observer = Client("tests.model.observer", log=log)

    def send(self, step: Step) -> None:
        """Begin a step; its outcome is taken by :meth:`answer`."""
        if step.action == "kill":
            self._kill(step.client)
            return
        arguments = json.loads(json.dumps(step.arguments).replace(ROOT, self.root))
        if not step.client:
            self._observer.send(step.action, **arguments)
            return
        if step.client not in self._clients:
            kind = step.client.partition("-")[0]
            self._clients[step.client] = Client("tests.model.client", kind, log=self._log)
        self._clients[step.client].send(step.action, connection=step.connection, **arguments)

    def answer(self, step: Step) -> Outcome:
        """The outcome of the step that was sent. Raises ClientError, ClientStuck."""
        if step.action == "kill":
            return {"rows": [], "error": "", "open": False}
        if not step.client:
            error = self._observer.answer(ANSWER_SECONDS)
            outcome = {"rows": [], "error": error, "open": False}
        else:
            outcome = self._clients[step.client].answer(ANSWER_SECONDS)
        found: Outcome = json.loads(json.dumps(outcome).replace(self.root, ROOT))
        return found

    def _kill(self, name: str) -> None:
        """``kill -9``, until neither the client nor its shells hold any file."""
        client = self._clients.pop(name, None)
        if client is None:
            return
        shells = children(client.process.pid)
        client.close()

        def gone() -> bool:
            return all((proc_stat(pid) or ("Z", 0))[0] == "Z" for pid in shells)

        wait_until(gone, 10, f"{name} is gone", 0.002)

    def ask(self, operation: str, name: str) -> None:
        """Ask the observer for ``content`` or ``sizes`` of a database."""
        self._observer.send(operation, path=f"{self.root}/{name}")

    def told(self) -> Any:
        """What was asked for."""
        return self._observer.answer(ANSWER_SECONDS)

    def content(self, name: str) -> Content:
        """The content of a database as a new connection sees it."""
        self.ask("content", name)
        content: Content = self.told()
        return content

    def names(self) -> list[str]:
        """All names below the directory."""
        names: list[str] = self._observer.call("names", ANSWER_SECONDS, path=self.root)
        return names

    def close(self) -> None:
        """End all processes."""
        for client in self._clients.values():
            client.close()
        self._observer.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
