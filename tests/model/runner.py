"""Runs the steps of a history on both sides; holds mount, log and replica against the native directory."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from litefs.store.paths import DataDir
from tests.model.client import Outcome
from tests.model.content import Content, content_of_image, differences, is_known
from tests.model.replayed import Replayed
from tests.model.side import ANSWER_SECONDS, Side
from tests.model.steps import Step
from tests.support.node import Node, pages_equal, wait_equal
from tests.support.processes import Client

LOG_SECONDS = 5.0
"""How long the log may lag behind: commits that nobody syncs are found by a sweep."""
REPLACING = ("attempt", "load", "rest")
"""Actions after which a connection on the replica may have to be opened anew, as after another page size."""
REPLICA_STEPS = 8
HURRY = 0.4
"""The share of steps after which the log is not looked at before the next one."""


class Difference(AssertionError):
    """The mount, the log or the replica is not as the native side."""


class Runner:
    """Native directory, primary and replica of one history, below the directory ``prefix`` of the mount."""

    def __init__(self, tmp: Path, primary: Node, replica: Node, prefix: str = "") -> None:
        native = tmp / f"native{prefix}"
        native.mkdir()
        self._images = tmp / f"images{prefix}"
        self._images.mkdir()
        self._prefix = f"{prefix}/" if prefix else ""
        if prefix:
            primary.files("mkdir", path=primary.path(prefix))
        log = tmp / "clients.log"
        self._primary, self._replica = primary, replica
        self._data = DataDir(primary.data)
        self._nothing = self._empty()
        self.native = Side(str(native), log)
        self.mount = Side(primary.path(prefix).rstrip("/"), log)
        self._far = Side(replica.path(prefix).rstrip("/"), log)
        self._readers = Client("tests.model.reader", log=log)
        self._replayed: dict[str, Replayed] = {}
        self._allowed: dict[str, list[Content] | None] = {}
        """By database, the contents it had since the log was last seen to hold the newest one, oldest first;
        None if one of them is not known, because nobody could read it.
        """
        self._page_sizes: dict[str, int] = {}
        """Of the databases that are not empty on the native side."""
        self._replaced: set[str] = set()
        self._unseen: set[str] = set()
        """Databases that changed since the replica was looked at."""
        self._steps = 0
        self._rng = random.Random(0)

    def _empty(self) -> Content:
        path = self._images / "empty"
        path.write_bytes(b"")
        return content_of_image(path)

    def close(self) -> None:
        """End all processes."""
        for side in (self.native, self.mount, self._far):
            side.close()
        self._readers.close()
        for replayed in self._replayed.values():
            replayed.close()

    # -- one step ----------------------------------------------------------------------------------

    def run(self, step: Step) -> tuple[Outcome, dict[str, int]]:
        """Run a step on both sides; its outcome and the page sizes after it. Raises Difference."""
        outcome, other = self._both(step)
        if outcome != other:
            raise Difference(f"native {outcome}\nmount  {other}")
        hurry = bool(step.client) and self._rng.random() < HURRY
        for name in step.databases:
            self._compare(step, name, hurry)
        self._steps += 1
        if self._steps % REPLICA_STEPS == 0:
            self.look_at_replica()
        return outcome, {name: self._page_sizes[name] for name in step.databases if name in self._page_sizes}

    def _both(self, step: Step) -> tuple[Outcome, Outcome]:
        self.native.send(step)
        self.mount.send(step)
        return self.native.answer(step), self.mount.answer(step)

    def _ask_both(self, operation: str, name: str) -> tuple[Any, Any]:
        self.native.ask(operation, name)
        self.mount.ask(operation, name)
        return self.native.told(), self.mount.told()

    def _compare(self, step: Step, name: str, hurry: bool) -> None:
        """With ``hurry`` only note what the native side has, so that the next step comes before any sweep."""
        self._unseen.add(name)
        if step.action in REPLACING:
            self._replaced.add(name)
        if step.action == "burst":
            self._allowed[name] = None
        if hurry:
            self._note(name, self.native.content(name))
            return
        native, mount = self._ask_both("sizes", name)
        if native != mount:
            raise Difference(f"{name}: sizes: native {native}, mount {mount}")
        native, mount = self._ask_both("content", name)
        if native != mount:
            raise Difference(f"{name}: native != mount: " + "; ".join(differences(native, mount)))
        self._note(name, native)
        self._follow(name, native)

    # -- the log -----------------------------------------------------------------------------------

    def _note(self, name: str, native: Content) -> None:
        """What the native side has now, or why it cannot be read."""
        allowed = self._allowed.setdefault(name, [self._nothing])
        if not is_known(native):
            self._allowed[name] = None
            if native["error"] == "SQLITE_CANTOPEN":
                self._page_sizes.pop(name, None)
            return
        if allowed is not None:
            allowed.append(native)
        before = self._page_sizes.pop(name, None)
        if native.get("pragma page_count") != "0":
            size = self._page_sizes[name] = int(native.get("pragma page_size", before or 0))
            if before not in (None, size):
                self._replaced.add(name)

    def _follow(self, name: str, native: Content) -> None:
        """Wait until the log holds what the native side has, and check each state on the way."""
        until = time.monotonic() + LOG_SECONDS
        while True:
            replayed = self._current(name)
            for found in replayed.advance() if replayed else ():
                self._check_state(name, found, native)
            now = replayed.content if replayed else self._nothing
            if not is_known(native) or now == native:
                break
            if time.monotonic() > until:
                raise Difference(f"{name}: native != log: " + "; ".join(differences(native, now)))
            time.sleep(0.005)
        if is_known(native):
            self._allowed[name] = [native]

    def _check_state(self, name: str, found: Content, native: Content) -> None:
        """That a state in the log is one that was committed, and sound unless the native side is damaged too:
        a statement that fails half-way with journal_mode=OFF does that.
        """
        allowed = self._allowed[name]
        sound = not is_known(native) or native.get("integrity") == "ok"
        if sound and found.get("integrity") != "ok" and (allowed is None or found not in allowed):
            raise Difference(f"{name}: at {self._replayed[name].txid:016x}: {found}")
        if name in self._replaced or allowed is None:
            return
        if found not in allowed:
            raise Difference(
                f"{name}: {self._replayed[name].txid:016x} is no state that was committed since: "
                + "; ".join(differences(allowed[-1], found))
            )
        del allowed[: allowed.index(found)]

    def _current(self, name: str) -> Replayed | None:
        """What follows the log of a database; None while it has none."""
        replayed = self._replayed.get(name)
        if replayed is not None and not replayed.current:
            self._replayed.pop(name).close()
            replayed = None
        directory = self._data.database_dir(self._prefix + name)
        if replayed is None and directory.sums.exists() and any(directory.log.glob("*")):
            image = self._images / name.replace("/", "_")
            replayed = self._replayed[name] = Replayed(directory, image)
        return replayed

    # -- the replica -------------------------------------------------------------------------------

    def look_at_replica(self) -> None:
        """Compare the databases that changed with what the log gave, by new and by old connections."""
        for name in sorted(self._unseen):
            native = self.native.content(name)
            self._note(name, native)
            self._follow(name, native)
            if not is_known(native) and native["error"] != "SQLITE_CANTOPEN":
                continue  # somebody holds a lock
            self._unseen.discard(name)
            replayed = self._current(name)
            path = self._replica.path(self._prefix + name)
            if replayed is None or not replayed.txid:
                self._readers.call("drop", ANSWER_SECONDS, path=path)
                continue
            wait_equal(self._primary, self._replica, self._prefix + name)
            # a WAL lies beside each database of a replica, whatever its journal mode
            wanted = {**replayed.content}
            wanted.pop("wal", None)
            fresh = self._far.content(name)
            fresh.pop("wal", None)
            if fresh != wanted:
                raise Difference(f"{name}: log != replica: " + "; ".join(differences(wanted, fresh)))
            seen = self._readers.call("look", ANSWER_SECONDS, path=path)
            if seen["now"] != wanted:
                different = "; ".join(differences(wanted, seen["now"]))
                raise Difference(f"{name}: log != old connection on the replica: {different}")
            if seen["error"] and name not in self._replaced and "error" not in wanted:
                raise Difference(f"{name}: a reader on the replica failed: {seen['error']}")
            if not seen["error"] and seen["held"] != seen["before"]:
                changed = "; ".join(differences(seen["before"], seen["held"]))
                raise Difference(f"{name}: a transaction on the replica saw a change: {changed}")
            self._replaced.discard(name)

    def finish(self) -> None:
        """With all connections closed: native, primary and replica have the same databases, page for page."""
        self.look_at_replica()
        native, mount = self.native.names(), self.mount.names()
        if native != mount:
            raise Difference(f"names: native {native}, mount {mount}")
        for name in sorted(self._replayed):
            if name in self._page_sizes:
                pages_equal(self._primary, self._replica, self._prefix + name)
