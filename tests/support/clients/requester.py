"""A load tool that knows what became of each request: ``CLIENTS PORT...``.

``run`` sends POST /add?n=N for each N of a range, from CLIENTS threads with a connection each, in turn to the
proxies at the ports, and returns per number status (0: no answer), what was answered, and when it began and
ended; ``progress`` tells how many there are.
"""

from __future__ import annotations

import http.client
import itertools
import sys
import threading
import time
from typing import Any

from tests.support.clients.protocol import serve

CLIENTS, PORTS = int(sys.argv[1]), [int(port) for port in sys.argv[2:]]

done: list[tuple[int, int, str, float, float]] = []
threads: list[threading.Thread] = []
stopped = threading.Event()


def _client(numbers: Any, port: int, pause: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not stopped.is_set():
        try:
            number = next(numbers)
        except StopIteration:
            return
        began = time.monotonic()
        try:
            connection.request("POST", f"/add?n={number}", body=b"")
            response = connection.getresponse()
            status, text = response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            status, text = 0, repr(error)
            connection.close()
        done.append((number, status, text, began, time.monotonic()))
        if pause:
            time.sleep(pause)


class _Shared:
    """``next`` of one iterator, by several threads."""

    def __init__(self, numbers: range) -> None:
        self._numbers = itertools.chain(numbers)
        self._lock = threading.Lock()

    def __next__(self) -> int:
        with self._lock:
            return next(self._numbers)


def start(first: int, count: int, pause: float = 0.0) -> None:
    shared = _Shared(range(first, first + count))
    for index in range(CLIENTS):
        thread = threading.Thread(
            target=_client, args=(shared, PORTS[index % len(PORTS)], pause), daemon=True
        )
        threads.append(thread)
        thread.start()


def progress() -> int:
    return len(done)


def finish() -> list[tuple[int, int, str, float, float]]:
    for thread in threads:
        thread.join(60)
    threads.clear()
    found, done[:] = list(done), []
    return found


def halt() -> list[tuple[int, int, str, float, float]]:
    stopped.set()
    return finish()


serve({"start": start, "progress": progress, "finish": finish, "halt": halt})
