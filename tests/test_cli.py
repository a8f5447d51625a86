"""The command line: flags, exit codes, what is refused in time, import and export over HTTP/2."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from litefs.cli import connection
from litefs.cli.connection import Connection
from litefs.cli.flags import Flag, UsageError, parse_flags
from litefs.cli.main import main
from litefs.cli.transfer import CHUNK, export_database, import_database
from litefs.errors import DatabaseNotFound, FormatError, LiteFSError, PeerError

FLAGS = (Flag("name", "", "NAME", "x"), Flag("v", ""))


@pytest.mark.parametrize(
    ("argv", "name", "verbose", "rest"),
    [
        ([], "x", False, ()),
        (["-name", "a", "--v", "f"], "a", True, ("f",)),
        (["--name=a=b", "-v=false"], "a=b", False, ()),
        (["-name=", "-v=1"], "", True, ()),
        (["-name", "-v"], "-v", False, ()),
        (["f", "-v"], "x", False, ("f", "-v")),
        (["-v", "--", "-name"], "x", True, ("-name",)),
        (["-", "-v"], "x", False, ("-", "-v")),
    ],
)
def test_flags_parse_as_in_go(argv: list[str], name: str, verbose: bool, rest: tuple[str, ...]) -> None:
    parsed = parse_flags(FLAGS, argv)
    assert (parsed.values["name"], "v" in parsed.switches, parsed.rest) == (name, verbose, rest)


@pytest.mark.parametrize("argv", [["-name"], ["-x"], ["-v=perhaps"], ["---v"]])
def test_wrong_flags(argv: list[str]) -> None:
    with pytest.raises(UsageError, match=r"."):
        parse_flags(FLAGS, argv)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "Usage:"),
        (["help"], 2, "Commands:"),
        (["--help"], 2, "litefs COMMAND"),
        (["frobnicate"], 1, "ERROR: litefs frobnicate: unknown command"),
        (["mount", "--help"], 2, "-config PATH"),
        (["mount", "-nope"], 2, "flag provided but not defined: -nope"),
        (["mount", "x"], 2, "specify a '--'"),
        (["mount", "--"], 2, "no command after '--'"),
        (["mount", "-config", "a", "-dir", "b"], 2, "exclude each other"),
        (["mount", "-config", "/nonexistent/litefs.yml"], 2, "ERROR: config file not found"),
        (["promote", "b"], 2, "too many arguments"),
        (["promote", "--help"], 2, "-force"),
        (["handoff"], 2, "required: the node that is to become primary"),
        (["handoff", "b", "c"], 2, "required: the node that is to become primary"),
        (["import", "f"], 2, "database name required"),
        (["import", "-name", "a"], 2, "path required"),
        (["export", "-name", "a", "b", "c"], 2, "too many arguments"),
        (["import", "-name", "a", "/nonexistent/f"], 1, "ERROR: cannot read /nonexistent/f"),
        (["import", "-name", "a", __file__], 1, "is not a SQLite database"),
        (["version", "x"], 2, "too many arguments"),
    ],
)
def test_exit_codes(argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


def test_a_data_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    path = tmp_path / "litefs.yml"
    path.write_text(f"lease: {{type: static}}\nfuse: {{dir: {tmp_path}/mnt}}\ndata: {{dir: {path}/data}}\n")
    # In a process of its own: it sets up the process log.
    done = subprocess.run(
        [sys.executable, "-m", "litefs.cli.main", "mount", "-config", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"config file read from {path}" in done.stdout
    assert f"{path}/data" in done.stderr, "a file cannot have a data directory inside"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("LiteFS ")


def test_version_needs_neither_fuse_nor_http() -> None:
    heavy = "{'pyfuse3', 'trio', 'quart', 'httpx', 'hypercorn', 'msgspec'}"
    code = (
        f"import sys; from litefs.cli.main import main; main(['version']); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


@dataclass
class FakeNode:
    """A node's import and export over h2c, as much as the commands can see of it."""

    databases: dict[str, bytes] = field(default_factory=dict)
    primary: str = ""
    """Host name of the primary if it is another node."""
    full: bool = False
    """Answer an import with 500."""
    cut: bool = False
    """Stop in the middle of an export."""
    url: str = ""
    checks: list[str] = field(default_factory=list)
    """The parameter ``check`` of each request."""

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        query = parse_qs(scope["query_string"].decode())
        name = query.get("name", [""])[0]
        self.checks.append(query.get("check", [""])[0])
        if scope["http_version"] != "2":
            await self._answer(send, 426, b"HTTP/2 required\n")
        elif scope["path"] == "/info":
            info = {"isPrimary": not self.primary, "primary": {"hostname": self.primary}}
            await self._answer(send, 200, json.dumps(info).encode())
        elif scope["path"] == "/import":
            body = b""
            while True:
                event = await receive()
                assert event["type"] == "http.request"
                body += event["body"]
                if not event["more_body"]:
                    break
            if self.full:
                await self._answer(send, 500, b"no space left on device\n")
                return
            self.databases[name] = body
            await self._answer(send, 200, b"")
        elif name not in self.databases:
            await self._answer(send, 404, b"database not found\n")
        else:
            await self._answer(send, 200, self.databases[name])

    async def _answer(self, send: ASGISendCallable, status: int, body: bytes) -> None:
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [length], "trailers": False})
        if self.cut:
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            raise ConnectionAbortedError("cut on purpose")
        await send({"type": "http.response.body", "body": body, "more_body": False})


@pytest.fixture
def node() -> Iterator[FakeNode]:
    """A FakeNode that listens on loopback, in a thread."""
    fake = FakeNode()
    listener = socket.create_server(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = HypercornConfig()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    config.graceful_timeout = 0.2
    config.keep_alive_timeout = 0.5
    started = threading.Event()
    stop: list[Callable[[], None]] = []

    async def run() -> None:
        token, wake = trio.lowlevel.current_trio_token(), trio.Event()
        stop.append(lambda: token.run_sync_soon(wake.set))
        started.set()
        with trio.fail_after(60):
            await serve(fake, config, shutdown_trigger=wake.wait)

    thread = threading.Thread(target=partial(trio.run, run), daemon=True)
    thread.start()
    assert started.wait(10)
    yield fake
    stop[0]()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of some MiB, more than one chunk and more than an HTTP/2 window."""
    path = tmp_path / "source.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (b BLOB)")
        connection.executemany("INSERT INTO t VALUES (randomblob(65536))", [()] * (3 * CHUNK // 65536))
    connection.close()
    return path


def test_import_and_export(node: FakeNode, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "-url", node.url, "-name", "a.db", str(database)]) == 0
    assert node.databases["a.db"] == database.read_bytes()
    target = database.with_name("target.db")
    assert main(["export", "-url", node.url + "/", "-name", "a.db", str(target)]) == 0
    assert target.read_bytes() == database.read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == [
        'Import of database "a.db" in',
        'Export of database "a.db" in',
    ]
    assert sorted(path.name for path in database.parent.iterdir()) == ["source.db", "target.db"]


def test_import_refuses_what_is_no_whole_database(node: FakeNode, database: Path) -> None:
    whole = database.read_bytes()
    for broken in (b"", b"SQLite format 3\0", b"x" * 8192, whole[:-4096], whole[:-1]):
        database.write_bytes(broken)
        with pytest.raises(FormatError, match=r"source\.db"):
            import_database(Connection(node.url), "a.db", database)
    database.write_bytes(whole)
    database.with_name("source.db-wal").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"not complete without source\.db-wal"):
        import_database(Connection(node.url), "a.db", database)
    assert not node.databases


def test_import_reports_the_nodes_refusal(node: FakeNode, database: Path) -> None:
    node.full = True
    with pytest.raises(PeerError, match=r"invalid response: code=500: no space left on device"):
        import_database(Connection(node.url), "a.db", database)


def test_a_failed_export_touches_nothing(node: FakeNode, database: Path, tmp_path: Path) -> None:
    before = database.read_bytes()
    database.with_name("source.db-wal").write_bytes(b"x")
    node.databases = {"a.db": before, "text": b"no database " * 100}
    with pytest.raises(DatabaseNotFound, match="database not found"):
        export_database(Connection(node.url), "b.db", database)
    with pytest.raises(FormatError, match="is not a SQLite database"):
        export_database(Connection(node.url), "text", database)
    node.cut = True
    with pytest.raises(PeerError):
        export_database(Connection(node.url), "a.db", database)
    with pytest.raises(LiteFSError, match="cannot write"):
        export_database(Connection(node.url), "a.db", tmp_path / "missing" / "f")
    assert database.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.db", "source.db-wal"]


def test_a_damaged_export_replaces_nothing(
    node: FakeNode, database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = database.read_bytes()
    damaged = bytearray(whole)
    damaged[4096:4196] = b"x" * 100  # the table's root page
    node.databases = {"a.db": bytes(damaged)}
    target = tmp_path / "target.db"
    target.write_bytes(b"old")
    export = ["export", "-url", node.url, "-name", "a.db"]
    assert main([*export, str(target)]) == 1
    assert "is damaged: " in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.db", "target.db"]
    assert main([*export, "-no-check", str(target)]) == 0
    assert target.read_bytes() == damaged


def test_an_import_may_ask_for_no_check(node: FakeNode, database: Path) -> None:
    line = ["import", "-url", node.url, "-name", "a.db"]
    assert main([*line, str(database)]) == 0
    assert main([*line, "--no-check", str(database)]) == 0
    assert node.checks == ["", "", "", "0"], "a greeting before each"


def test_an_export_takes_the_old_wal_away(node: FakeNode, database: Path, tmp_path: Path) -> None:
    """SQLite would apply the WAL of the old content to the new one."""
    node.databases = {"a.db": database.read_bytes()}
    target = tmp_path / "target.db"
    for suffix in ("", "-wal", "-shm", "-journal"):
        target.with_name(target.name + suffix).write_bytes(b"old")
    export_database(Connection(node.url), "a.db", target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.db", "target.db"]


def test_no_node_there(database: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(PeerError, match=rf"http://127\.0\.0\.1:{port}: "):
        import_database(Connection(f"http://127.0.0.1:{port}"), "a.db", database)
    with pytest.raises(PeerError):
        import_database(Connection("localhost:1"), "a.db", database)


def test_something_else_answers(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that speaks no HTTP/2, and keeps the connection open."""
    monkeypatch.setattr(connection, "GREETING_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"220 mail.example ESMTP\r\n" * 10)
                connection.settimeout(30)
                while connection.recv(65536):
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(PeerError):
            export_database(Connection(f"http://127.0.0.1:{server.getsockname()[1]}"), "a.db", database)
        thread.join(10)


def test_watching_in_json_has_one_shape_also_of_a_dead_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("litefs.cli.status.time.sleep", pause)
    assert main(["status", "-watch", "--json", "-url", "http://127.0.0.1:1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2, "it looks again"
    for line in lines:
        shown = json.loads(line)
        assert set(shown) == {"asked", "primary", "problem"}
        assert shown["asked"] is shown["primary"] is None
        assert "is the node running there?" in shown["problem"]


def test_a_big_database_has_the_time_it_takes_and_a_dead_machine_has_not(
    node: FakeNode, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node copies and checks all of it before its first byte; whether it lives the kernel finds out."""
    waits: dict[str, float] = {}
    alive: list[tuple[int, int]] = []
    check = Connection._check

    def noted(self: Connection, response: httpx.Response, name: str) -> None:
        waits[response.request.url.path] = response.request.extensions["timeout"]["read"]
        sock = response.extensions["network_stream"].get_extra_info("socket")
        keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        alive.append((keepalive, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)))
        check(self, response, name)

    monkeypatch.setattr(Connection, "_check", noted)
    assert main(["import", "-url", node.url, "-name", "app.db", str(database)]) == 0
    assert main(["export", "-url", node.url, "-name", "app.db", str(tmp_path / "out.db")]) == 0
    assert waits["/import"] == waits["/export"] == 3600
    assert waits["/info"] < 10
    assert {(on > 0, idle) for on, idle in alive} == {(True, 15)}
