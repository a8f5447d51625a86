"""A proxy in front of an HTTP server, such as the S3 server of ``s3.py``, that fails as it is told."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

SLOW_SECONDS = 0.4
FORWARD_SECONDS = 60.0
HANG_SECONDS = 60.0

Mode = Literal["", "drop", "503", "409", "slow", "lost", "cut", "hang"]
"""What becomes of a request. ``drop``: its connection is closed before it is passed on; numbers: refused;
``slow``: passed on ``SLOW_SECONDS`` later; ``lost``: passed on, and the connection closed in place of the
answer; ``cut``: the answer ends within its body; ``hang``: no answer at all, until the proxy ends."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server of this machine, as ``mode`` says."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        """``port``: of the server."""
        super().__init__(("127.0.0.1", 0), _Forward)
        self.port = port
        self.mode: Mode = ""
        """Of every request, while no ``fail`` is to come."""
        self.requests: list[str] = []
        """``METHOD MODE`` of those that came."""
        self.ended = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self._next: list[Mode] = []
        self._lock = threading.Lock()

    def fail(self, *modes: Mode) -> None:
        """Have the next requests fail, one by one, in these ways."""
        with self._lock:
            self._next = list(modes)

    def take(self, method: str) -> Mode:
        """What is to become of the request that just came."""
        with self._lock:
            mode = self._next.pop(0) if self._next else self.mode
            self.requests.append(f"{method} {mode}".strip())
            return mode

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closed its connection is none."""


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *words: object) -> None:
        """Nothing."""

    def _forward(self) -> None:
        mode = self.server.take(self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = mode in ("drop", "lost", "cut", "hang")
        if mode == "hang":
            self.server.ended.wait(HANG_SECONDS)
        if mode in ("drop", "hang"):
            return
        if mode == "503":
            self._answer(503, [("Retry-After", "1")], b"<Error><Code>SlowDown</Code></Error>")
            return
        if mode == "409":
            self._answer(409, [], b"<Error><Code>ConditionalRequestConflict</Code></Error>")
            return
        if mode == "slow":
            time.sleep(SLOW_SECONDS)
        try:
            status, headers, content = self._pass_on(body)
        except OSError:
            self.close_connection = True
            return
        if mode != "lost":
            self._answer(status, headers, content, cut=mode == "cut")

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=FORWARD_SECONDS)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        size = length if self.command == "HEAD" and length is not None else str(len(content))
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)


@contextmanager
def before(endpoint: str) -> Iterator[Proxy]:
    """A proxy before the server at ``endpoint``, until the end of the block."""
    proxy = Proxy(int(endpoint.rpartition(":")[2]))
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        proxy.shutdown()
        thread.join(10)
        proxy.server_close()
