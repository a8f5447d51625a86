"""Read-your-writes without a proxy: what a visitor wrote on the primary is seen on a replica."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from typing import Any, cast

import httpx
import pytest

from litefs.client import cookie, visitors, wsgi
from litefs.client.asgi import ReadYourWrites as Asgi
from litefs.client.wsgi import ReadYourWrites as Wsgi
from litefs.errors import WaitTimeout
from tests.client.conftest import Run
from tests.support.node import Node, wait_equal
from tests.support.processes import Client

LATE_SECONDS = 0.3


def rows(path: str) -> str:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return str(connection.execute("SELECT count(*) FROM t").fetchone()[0])


def write(path: str) -> str:
    with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
        connection.execute("INSERT INTO t VALUES(1)")
    return rows(path)


class AsgiApplication:
    """POST adds a row; whatever is asked, the answer is how many there are."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (write if scope["method"] == "POST" else rows)(self.path).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-other", b"1")]})
        await send({"type": "http.response.body", "body": body})


def wsgi_application(path: str) -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = (write if environ["REQUEST_METHOD"] == "POST" else rows)(path).encode()
        start_response("200 OK", [("X-Other", "1")])
        return [body]

    return application


class Site:
    """The application on one node, behind either middleware."""

    def __init__(self, kind: str, node: Node, run: Run) -> None:
        self._kind, self._run = kind, run
        paths = [node.path("app.db")]
        self.asgi = Asgi(AsgiApplication(paths[0]), *paths, seconds=LATE_SECONDS)
        self.wsgi = Wsgi(wsgi_application(paths[0]), *paths, seconds=LATE_SECONDS)

    def ask(self, method: str, txid: str | None = None) -> httpx.Response:
        headers = {} if txid is None else {"Cookie": f"a=b; {cookie.NAME}={txid}"}
        if self._kind == "wsgi":
            with httpx.Client(transport=httpx.WSGITransport(self.wsgi), base_url="http://site") as http:
                return http.request(method, "/", headers=headers)

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.asgi)
            async with httpx.AsyncClient(transport=transport, base_url="http://site") as http:
                return await http.request(method, "/", headers=headers)

        answer: httpx.Response = self._run(ask)
        return answer


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_read_your_writes(kind: str, run: Run, nodes: tuple[Node, Node], sql: Client) -> None:
    primary, replica = nodes
    here, there = Site(kind, primary, run), Site(kind, replica, run)
    wrote = here.ask("POST")
    position = primary.position("app.db")
    assert position is not None
    txid = f"{position.txid:016x}"
    assert wrote.headers["set-cookie"] == f"__txid={txid}; Path=/; Max-Age=300; HttpOnly"
    assert wrote.headers["x-other"] == "1"
    read = there.ask("GET", txid)
    assert (read.status_code, read.text) == (200, wrote.text)
    assert "set-cookie" not in read.headers, "a read sets none"
    wait_equal(primary, replica, "app.db")

    following = f"{position.txid + 1:016x}"
    late = there.ask("GET", following)
    assert (late.status_code, "try again" in late.text) == (504, True)
    assert here.ask("GET", following).text == wrote.text, "a primary is not waited for"
    for nonsense in ("x", "0" * 17, "nodb:0000000000000009", ""):
        assert there.ask("GET", nonsense).text == wrote.text
    begun = time.monotonic()

    def commit_later() -> None:
        time.sleep(LATE_SECONDS / 3)
        sql.call("execute", statement="INSERT INTO t VALUES(1)")

    writer = threading.Thread(target=commit_later)
    writer.start()
    waited = there.ask("GET", following)
    writer.join()
    assert (waited.status_code, waited.text) == (200, str(int(wrote.text) + 1))
    assert time.monotonic() - begun >= LATE_SECONDS / 3


def test_what_is_not_http_passes(run: Run, nodes: tuple[Node, Node]) -> None:
    seen = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def ask() -> None:
        await Asgi(application, nodes[0].path("app.db"))({"type": "lifespan"}, None, None)  # type: ignore[arg-type]

    run(ask)
    assert seen == ["lifespan"]


def test_no_mount_no_cookie(run: Run, tmp_path: Any) -> None:
    """As on a developer's machine: the application works on a plain file."""
    path = str(tmp_path / "app.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t(x)")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Asgi(AsgiApplication(path), path))
        async with httpx.AsyncClient(transport=transport, base_url="http://site") as http:
            await http.get("/", headers={"Cookie": f"{cookie.NAME}={9:016x}"})
            return await http.post("/")

    answer = run(ask)
    assert (answer.text, "set-cookie" in answer.headers) == ("1", False)


def test_the_time_to_wait_is_for_all_databases_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def wait(path: str, txid: int, seconds: float) -> None:
        if path == "/m/b.db":
            asked.append(seconds)
        elif seconds:
            time.sleep(0.25)
            return
        raise WaitTimeout("not yet")

    def is_primary(path: str) -> bool:
        time.sleep(asked[-1] if asked else 0.0)
        return False

    monkeypatch.setattr(wsgi.reading, "wait", wait)
    monkeypatch.setattr(wsgi.reading, "is_primary", is_primary)
    monkeypatch.setattr(visitors.Databases, "names", lambda self: {"a.db": "/m/a.db", "b.db": "/m/b.db"})
    txids = f"__txid=a.db:{9:016x}&b.db:{9:016x}"
    environ: Any = {"REQUEST_METHOD": "GET", "HTTP_COOKIE": txids}
    statuses: list[str] = []
    middleware = Wsgi(wsgi_application("/m/a.db"), "/m/a.db", "/m/b.db", seconds=0.3)
    middleware(environ, lambda status, headers, *error: cast("Any", statuses.append(status)))
    assert statuses == ["504 Gateway Timeout"]
    assert asked
    assert sum(asked) < 0.1, "most of it went for the first"


def test_the_cookie_of_several_databases() -> None:
    names = ["app.db", "dir/a&b:c.db"]
    made = cookie.render({"app.db": 5, "dir/a&b:c.db": 0x1F}, names)
    assert made is not None
    pair = made.partition(";")[0]
    assert pair == "__txid=app.db:0000000000000005&dir%2Fa%26b%3Ac.db:000000000000001f"
    assert cookie.parse(["x=y", f"z=1; {pair}"], names) == {"app.db": 5, "dir/a&b:c.db": 31}
    assert cookie.parse([pair], names[:1]) == {"app.db": 5}, "of others nothing"
    assert cookie.parse([f"__txid={7:016x}"], names) == {"app.db": 7}, "that of Go: the first one"
    assert cookie.parse([pair], []) == {}
    assert cookie.render({}, names) is None
    assert cookie.render({"app.db": 0}, ["app.db"]) is None
