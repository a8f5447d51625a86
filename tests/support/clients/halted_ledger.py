"""The writer of ``ledger`` on a replica, under HALT: ``halted_ledger PATH ACKS WRITER``.

Operations: pause(), resume(), progress(), as of ``ledger``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from litefs import client
from litefs.errors import LiteFSError
from tests.support.clients.engines import SqlError, connect
from tests.support.clients.ledger import BUSY_MS, RETRY_SECONDS, Ledger
from tests.support.clients.protocol import serve

MOST_TRANSACTIONS = 12


class HaltedLedger(Ledger):
    """Takes the lock, writes, gives it up, and begins again."""

    def run(self) -> None:
        while True:
            self._rest()
            try:
                with client.halt(self._path):
                    self._write()
            except (LiteFSError, OSError, SqlError) as error:
                self._errors += 1
                self._last_error = repr(error)
            time.sleep(RETRY_SECONDS)

    def _write(self) -> None:
        engine = connect(self._kind, self._path, "rw", BUSY_MS)
        try:
            for _ in range(self._random.randint(1, MOST_TRANSACTIONS)):
                self._transact(engine)
        finally:
            with contextlib.suppress(Exception):
                engine.close()


def main() -> None:
    ledger = HaltedLedger("sqlite3", *sys.argv[1:])
    ledger.start()
    serve({"pause": ledger.pause, "resume": ledger.resume, "progress": ledger.progress})
    os._exit(0)


if __name__ == "__main__":
    main()
