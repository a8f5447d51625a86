"""A reader that checks the constant sum in each of its transactions: ``reader KIND PATH``.

Reads from the start; ``stop`` answers ``{"reads": …, "busy": …}``, or the error "Violated" if the sum was
ever wrong. Every tenth read is on a new connection.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time

from tests.support.clients.engines import SqlError, connect
from tests.support.clients.protocol import serve
from tests.support.clients.workload import INVARIANT, INVARIANT_HOLDS


class Violated(Exception):
    """A transaction saw something that no state of the primary has."""


class Reader(threading.Thread):
    """Reads until told to stop."""

    def __init__(self, kind: str, path: str) -> None:
        super().__init__(daemon=True)
        self._kind = kind
        self._path = path
        self._stopping = threading.Event()
        self._reads = self._busy = 0
        self._failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._on_one_connection()
        except Exception as error:
            self._failure = error

    def _on_one_connection(self) -> None:
        engine = connect(self._kind, self._path, "ro", busy_ms=5000)
        try:
            for _ in range(10):
                try:
                    # Both reads of a transaction see one state, also while records are applied in between.
                    first, second = engine.run(["BEGIN", INVARIANT, INVARIANT, "COMMIT"])
                except SqlError as error:
                    if not error.busy:
                        raise
                    self._busy += 1
                    with contextlib.suppress(SqlError):
                        engine.run(["ROLLBACK"])
                    continue
                if (first, second) != (INVARIANT_HOLDS, INVARIANT_HOLDS):
                    raise Violated(f"{self._path}: {first}, then {second}; should be {INVARIANT_HOLDS}")
                self._reads += 1
                time.sleep(0.005)
        finally:
            engine.close()

    def stop(self) -> dict[str, int]:
        self._stopping.set()
        self.join(10)
        if self._failure is not None:
            raise self._failure
        return {"reads": self._reads, "busy": self._busy}


def main() -> None:
    reader = Reader(*sys.argv[1:])
    reader.start()
    serve({"stop": reader.stop})


if __name__ == "__main__":
    main()
