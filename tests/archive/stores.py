"""Where the archive is in the tests, and how it fails: a directory on a file system of its own that fills up,
and an S3 server behind a proxy that drops, refuses, delays, and loses answers."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Protocol

from tests.support import s3
from tests.support.disks import small_disk

KINDS = ("directory", "s3")
DIRECTORY_MEGABYTES = 2048 if "LITEFS_SOAK" in os.environ else 256
SLOW_SECONDS = 0.4
FORWARD_SECONDS = 30.0

Mode = Literal["", "drop", "503", "slow", "lost", "full"]


class Store(Protocol):
    """``url``: for who looks at it; ``backup``: the section of litefs.yml, by which it fails."""

    url: str
    backup: dict[str, Any]
    modes: tuple[Mode, ...]
    environment: dict[str, str]

    def fail(self, mode: Mode) -> None:
        """Have it fail in that way from now on; empty: not any more."""


class Directory:
    """A small tmpfs, and a file that fills it."""

    modes: tuple[Mode, ...] = ("full",)

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"file://{path}/archive"
        self.backup: dict[str, Any] = {"type": "file", "path": f"{path}/archive"}
        self.environment: dict[str, str] = {}

    def fail(self, mode: Mode) -> None:
        """See Store."""
        ballast = self._path / "ballast"
        if not mode:
            ballast.unlink(missing_ok=True)
            return
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(64 << 10))


class Bucket:
    """moto's server, and the proxy before it."""

    modes: tuple[Mode, ...] = ("drop", "503", "slow", "lost")

    def __init__(self, server: s3.S3, proxy: Proxy) -> None:
        self._proxy = proxy
        query = "region=us-east-1&forcePathStyle=true"
        self.url = f"s3://{s3.BUCKET}/archive?endpoint={server.endpoint}&{query}"
        keys = {name: server.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        self.backup: dict[str, Any] = {
            "url": f"s3://{s3.BUCKET}/archive?endpoint={proxy.endpoint}&{query}",
            "access-key-id": keys["AWS_ACCESS_KEY_ID"],
            "secret-access-key": keys["AWS_SECRET_ACCESS_KEY"],
        }
        self.environment = keys

    def fail(self, mode: Mode) -> None:
        """See Store."""
        self._proxy.mode = mode


class Proxy(ThreadingHTTPServer):
    """Passes requests on to an HTTP server, as ``mode`` says. ``drop``: closes the connection before it is
    passed on; ``lost``: passes a request on and closes the connection in place of the answer."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        """``port``: of the server."""
        super().__init__(("127.0.0.1", 0), _Forward)
        self.port = port
        self.mode: Mode = ""
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closed its connection is none."""


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *words: object) -> None:
        """Nothing."""

    def _forward(self) -> None:
        mode = self.server.mode
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mode == "drop":
            self.close_connection = True
            return
        if mode == "503":
            self._answer(503, [("Retry-After", "1")], b"<Error><Code>SlowDown</Code></Error>")
            return
        if mode == "slow":
            time.sleep(SLOW_SECONDS)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=FORWARD_SECONDS)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            headers = answer.getheaders()
            status = answer.status
        except OSError:
            self.close_connection = True
            return
        finally:
            connection.close()
        if mode == "lost":
            self.close_connection = True
            return
        self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        size = length if self.command == "HEAD" and length is not None else str(len(content))
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def store(kind: str, root: Path) -> Iterator[Store]:
    """A store of that kind, empty, until the end of the block."""
    if kind == "directory":
        with small_disk(root / "store", DIRECTORY_MEGABYTES) as path:
            yield Directory(path)
        return
    with s3.running(root) as server:
        proxy = Proxy(int(server.endpoint.rpartition(":")[2]))
        thread = threading.Thread(target=proxy.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield Bucket(server, proxy)
        finally:
            proxy.shutdown()
            thread.join(10)
            proxy.server_close()
