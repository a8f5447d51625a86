"""A web application over a database on a mount: ``python -m tests.support.clients.webapp NAME PATH PORT``.

POST /add?n=N inserts a row, GET /has?n=N counts rows of that number, both with a connection of their own to
the database, as most frameworks do; POST /size answers how many bytes it was sent, GET /events sends a line
each 50 ms. Each answer begins with the node's NAME. An error of SQLite is status 500.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NAME, PATH, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])

turn = threading.Lock()
"""SQLite lets writers of one database wait in no order: under load some would wait for ever."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        if self.path == "/events":
            self._stream()
        else:
            self._answer("SELECT count(*) FROM t WHERE a = ?")

    def do_POST(self) -> None:
        if self.path.startswith("/size"):
            self._send(200, str(self._size()))
        else:
            self._size()
            self._answer("INSERT INTO t VALUES (?)")

    def _size(self) -> int:
        left = size = int(self.headers.get("Content-Length", "0"))
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        return size

    def _answer(self, statement: str) -> None:
        number = parse_qs(urlsplit(self.path).query)["n"][0]
        try:
            with turn, contextlib.closing(sqlite3.connect(PATH, timeout=10)) as database, database:
                database.execute("PRAGMA synchronous = NORMAL")
                rows = database.execute(statement, (int(number),)).fetchall()
        except sqlite3.Error as error:
            self._send(500, f"{error}")
        else:
            self._send(200, str(rows[0][0]) if rows else "added")

    def _send(self, status: int, text: str) -> None:
        body = f"{NAME} {text}".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.end_headers()
        for number in range(100):
            self.wfile.write(f"{NAME} {number}\n".encode())
            self.wfile.flush()
            time.sleep(0.05)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


Server(("127.0.0.1", PORT), Handler).serve_forever()
