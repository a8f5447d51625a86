"""A load tool that knows what became of each request: ``CLIENTS PORT...``.

``start`` sends POST /add?n=N for each N of a range, from CLIENTS threads with a connection each, in turn to
the proxies at the ports; ``finish`` waits for the end and returns, for each, number, status (0: no answer),
what was answered, and when it began and ended; ``progress`` tells how many were answered so far.
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections.abc import Iterator

from tests.support.clients.protocol import serve

CLIENTS, PORTS = int(sys.argv[1]), [int(port) for port in sys.argv[2:]]

done: list[tuple[int, int, str, float, float]] = []
threads: list[threading.Thread] = []
lock = threading.Lock()


def _client(numbers: Iterator[int], port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
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


def start(first: int, count: int) -> None:
    numbers = iter(range(first, first + count))
    for index in range(CLIENTS):
        thread = threading.Thread(target=_client, args=(numbers, PORTS[index % len(PORTS)]), daemon=True)
        threads.append(thread)
        thread.start()


def finish() -> list[tuple[int, int, str, float, float]]:
    for thread in threads:
        thread.join()
    return done


serve({"start": start, "progress": lambda: len(done), "finish": finish})
