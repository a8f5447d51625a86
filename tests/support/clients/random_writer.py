"""A writer of random transactions: ``random_writer KIND PATH SEED COUNT``.

Commits COUNT transactions (see workload.py), trying again those that met a lock, and answers once, at the
end: ``{"done": …, "retries": …}``.
"""

from __future__ import annotations

import contextlib
import sys
import time

from tests.support.clients.engines import SqlError, connect
from tests.support.clients.protocol import reply, reply_error
from tests.support.clients.workload import Workload

GIVE_UP_SECONDS = 60.0


def write(kind: str, path: str, seed: int, count: int) -> dict[str, int]:
    engine = connect(kind, path)
    engine.run(["PRAGMA cache_size=10", f"PRAGMA synchronous={('OFF', 'NORMAL', 'FULL')[seed % 3]}"])
    workload = Workload(seed, kind)
    done = retries = 0
    while done < count:
        statements = workload.next()
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                engine.run(statements)
                break
            except SqlError as error:
                if len(statements) > 1:
                    with contextlib.suppress(SqlError):
                        engine.run(["ROLLBACK"])
                if not error.busy or time.monotonic() > deadline:
                    raise
                retries += 1
                if len(statements) == 1:
                    break  # maintenance that met a reader is not worth waiting for
        done += 1
    engine.close()
    return {"done": done, "retries": retries}


def main() -> None:
    kind, path, seed, count = sys.argv[1:]
    try:
        reply(write(kind, path, int(seed), int(count)))
    except Exception as error:
        reply_error(error)


if __name__ == "__main__":
    main()
