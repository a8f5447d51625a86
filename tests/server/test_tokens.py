"""Tokens: strangers learn nothing, a token with a list of databases sees those."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from litefs.cluster.peer import Peer, PeerSettings
from litefs.cluster.replicas import Replicas
from litefs.config_http import MAX_PATTERN, MAX_PATTERNS, TokenConfig
from litefs.config_types import FilePath, Secret
from litefs.errors import ConfigError, LiteFSError, NotTrusted
from litefs.link.rules import SyncRules
from litefs.server.app import create_app
from litefs.server.serve import serve
from litefs.stream.acks import Ack, AckAnswer
from litefs.stream.memory import MemoryCatalog, MemorySink, MemorySource
from litefs.stream.protocols import Identity
from litefs.stream.receiver import Receiver
from litefs.tokens import EVERYTHING, Access, Tokens
from litefs.types import Point
from tests.server.support import CLUSTER, FakeNode, client, serving

REPLICA = Identity(0xB2, CLUSTER, 1, "replica")
OWN, REPORTS = "the-cluster's-own", "for/reports+only=="
ENDPOINTS = (
    ("GET", "/"),
    ("GET", "/info"),
    ("GET", "/metrics"),
    ("POST", "/metrics"),
    ("GET", "/export?name=app.db"),
    ("POST", "/import?name=app.db"),
    ("POST", "/stream"),
    ("DELETE", "/info"),
    ("OPTIONS", "/info"),
    ("POST", "/stream/ack"),
    ("POST", "/halt?name=app.db&id=1"),
    ("POST", "/tx?name=app.db&lockID=1"),
    ("GET", "/db/app.db/pos"),
    ("DELETE", "/db/app.db"),
    ("GET", "/unknown"),
    ("GET", "/info/../unknown"),
    ("HEAD", "/info"),
)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await test()

    trio.run(bounded)


def tokens(*databases: str) -> Tokens:
    other = TokenConfig(name="reports", token=Secret(REPORTS), databases=databases)
    return Tokens(Secret(OWN), (other,))


def node(*names: str) -> FakeNode:
    sources = []
    for name in names or ("app.db",):
        sources.append(MemorySource(name))
        sources[-1].commit({1: b"a" * 512})
    return FakeNode(MemoryCatalog(*sources))


def authorized(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def following(url: str, peer: PeerSettings, **held: Point) -> AsyncIterator[MemorySink]:
    """A sink that has received all that the primary at ``url`` sends at first."""
    sink = MemorySink()

    async def receive(*, task_status: trio.TaskStatus[None]) -> None:
        async with Peer(url, peer) as connection, connection.stream(REPLICA, held) as chunks:
            await Receiver(sink, on_ready=task_status.started).run(chunks)

    async with trio.open_nursery() as nursery:
        await nursery.start(receive)
        yield sink
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("http2", [True, False])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {OWN}",
        OWN,
        f"Bearer {OWN}x",
        f"Bearer {OWN[:-1]}",
    ],
)
def test_a_stranger_gets_401_and_nothing_else(http2: bool, authorization: str | None) -> None:
    async def main() -> None:
        headers = {} if authorization is None else {"Authorization": authorization}
        async with serving(node(), tokens=tokens()) as url, client(http1=not http2, http2=http2) as http:
            answers = set()
            for method, path in ENDPOINTS:
                content = b"x" * 100_000 if method == "POST" else None
                response = await http.request(method, url + path, headers=headers, content=content)
                response.headers.pop("date")
                response.headers.pop("connection", None)
                answers.add((response.status_code, response.content, tuple(response.headers.items())))
            assert answers == {(401, b"", (("www-authenticate", "Bearer"), ("content-length", "0")))}

    run(main)


def test_a_websocket_of_a_stranger_is_refused_the_same_way() -> None:
    async def main() -> None:
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
        }
        async with serving(node(), tokens=tokens()) as url, client(http1=True, http2=False) as http:
            response = await http.get(f"{url}/info", headers=headers)
            assert (response.status_code, response.content) == (401, b"")
            assert not any(name.startswith("litefs") for name in response.headers)

    run(main)


def test_two_authorization_headers_are_none() -> None:
    async def main() -> None:
        twice = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {OWN}")]
        async with serving(node(), tokens=tokens()) as url, client() as http:
            assert (await http.get(f"{url}/info", headers=twice)).status_code == 401

    run(main)


@pytest.mark.parametrize("token", [OWN, REPORTS])
def test_each_token_opens_everything_unless_it_has_a_list(token: str) -> None:
    async def main() -> None:
        async with serving(node(), tokens=tokens()) as url, client(headers=authorized(token)) as http:
            assert (await http.get(f"{url}/info")).headers["Litefs-Cluster-Id"] == CLUSTER
            assert (await http.get(f"{url}/unknown")).status_code == 404
            assert (await http.post(f"{url}/import?name=other.db", content=b"x")).status_code == 200

    run(main)


def test_a_token_with_a_list_sees_those_databases() -> None:
    async def main() -> None:
        limited = tokens("reports*", "dir/[ab].db")
        names = ("app.db", "reports.db", "reports/2026.db", "dir/a.db", "dir/c.db")
        fake = node(*names)
        async with serving(fake, tokens=limited) as url, client(headers=authorized(REPORTS)) as http:
            metrics = (await http.get(f"{url}/metrics")).text
            seen = {name for name in names if f'litefs_db_txid{{db="{name}"}}' in metrics}
            assert seen == {"reports.db", "reports/2026.db", "dir/a.db"}
            assert "litefs_db_count 3.0" in metrics
            status = (await http.get(f"{url}/status")).json()
            assert (
                {one["name"] for one in status["databases"]}
                == seen
                == set(status["replicas"][0]["databases"])
            )
            assert status["heldUp"] == []
            async with http.stream("GET", f"{url}/events") as answer:
                lines = answer.aiter_lines()
                assert set(json.loads(await anext(lines))["data"]["positions"]) == seen
                fake.events.publish("tx", {}, "app.db")
                fake.events.publish("tx", {}, "dir/a.db")
                assert json.loads(await anext(lines))["db"] == "dir/a.db"
            assert (await http.post(f"{url}/import?name=reports.db", content=b"x")).status_code == 200
            assert (await http.get(f"{url}/export?name=reports.db")).content == b"x"
            assert (await http.get(f"{url}/db/reports.db/wait?txid=1")).status_code == 200
            for answer in (
                await http.get(f"{url}/db/app.db/pos"),
                await http.get(f"{url}/db/app.db/wait?txid=1"),
                await http.post(f"{url}/halt?name=app.db&id=1"),
                await http.delete(f"{url}/halt?name=app.db&id=1"),
                await http.post(f"{url}/tx?name=app.db&lockID=1", content=b"x"),
                await http.post(f"{url}/import?name=app.db", content=b"x"),
                await http.get(f"{url}/export?name=app.db"),
                await http.get(f"{url}/export?name=absent"),
            ):
                assert answer.status_code == 403, "there or not, it is none of its business"
            # What nobody has thought of for such tokens is closed to them, whether it exists or not.
            for path in ("/db/app.db/pos", "/db/app.db/wait?txid=1"):
                assert (await http.get(url + path)).status_code == 403
            assert (await http.get(f"{url}/db/reports.db/pos")).status_code == 200
            for path in ("/halt?name=app.db&id=1", "/tx?name=app.db&lockID=1"):
                assert (await http.post(url + path)).status_code == 403
            for path in ("/promote", "/dbs/app.db/wait", "/infos"):
                answer = await http.post(url + path)
                assert (answer.status_code, answer.content) == (403, b"")

    run(main)


def test_a_stream_carries_what_token_and_replica_agree_on() -> None:
    async def main() -> None:
        fake = node("app.db", "reports.db", "reports.old")
        async with serving(fake, tokens=tokens("reports*")) as url:
            shown = Tokens(Secret(REPORTS))
            async with following(url, PeerSettings(shown), **{"app.db": Point(1, 1 << 63)}) as sink:
                assert set(sink.positions()) == {"reports.db", "reports.old"}
                assert (sink.dropped, sink.removed) == (["app.db"], []), "it is not taken for removed"
                late = MemorySource("late.db"), MemorySource("reports.new")
                for source in late:
                    source.commit({1: b"b" * 512})
                    fake.catalog.add(source)
                while "reports.new" not in sink.positions():
                    await sink.changed.wait_change(sink.changed.revision)
                assert "late.db" not in sink.positions()
            async with following(url, PeerSettings(shown, databases=("*.old", "app.db"))) as sink:
                assert set(sink.positions()) == {"reports.old"}
            async with following(url, PeerSettings(Tokens(Secret(OWN)), databases=("app.*",))) as sink:
                assert set(sink.positions()) == {"app.db"}
            async with following(url, PeerSettings(Tokens(Secret(OWN)), candidate=True)) as sink:
                assert len(sink.positions()) == 5

    run(main)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (PeerSettings(), "wants a token (status 401): set http.auth-token"),
        (
            PeerSettings(Tokens(Secret("wrong"))),
            "does not accept our token (status 401): compare http.auth-token",
        ),
        (
            PeerSettings(Tokens(Secret(REPORTS)), candidate=True),
            "our token is reports there, not one for all",
        ),
    ],
)
def test_a_replica_is_told_what_to_change(settings: PeerSettings, words: str) -> None:
    async def main() -> None:
        async with serving(node(), tokens=tokens("app.db")) as url:
            with pytest.raises(NotTrusted) as caught:
                async with Peer(url, settings) as peer, peer.stream(REPLICA, {}):
                    pass
            assert words in str(caught.value)

    run(main)


def test_who_is_not_sent_everything_is_neither_in_sync_nor_a_candidate() -> None:
    async def main() -> None:
        fake, rules = node("app.db", "reports.db"), SyncRules(1)
        fake.replicas = Replicas(fake.catalog, rules, lambda: fake.identity, lambda told: None)
        fake.replicas.begin()
        own = Tokens(Secret(OWN))
        async with serving(fake, tokens=tokens("reports*")) as url:
            for settings, answer in (
                (PeerSettings(own), AckAnswer(rules)),
                (PeerSettings(own, databases=("*.db",)), AckAnswer()),
                (PeerSettings(Tokens(Secret(REPORTS))), AckAnswer()),
            ):
                async with Peer(url, settings) as peer, peer.stream(REPLICA, {}) as chunks:
                    await anext(chunks)
                    assert await peer.acknowledge(REPLICA, Ack(False, ())) == answer
                    if settings.tokens is not own:
                        with pytest.raises(LiteFSError, match="a candidate needs a token for all"):
                            await peer.acknowledge(REPLICA, Ack(True, ()))

    run(main)


def test_filters_have_a_limit_up_to_which_they_work() -> None:
    async def main() -> None:
        async with serving(node()) as url:
            for patterns in (
                ("a",) * (MAX_PATTERNS // len("filter=a&") + 1),
                ("",),
                ("x" * (MAX_PATTERN + 1),),
            ):
                with pytest.raises(LiteFSError, match=r"filter: .*\(status 400\)"):
                    async with (
                        Peer(url, PeerSettings(databases=patterns)) as peer,
                        peer.stream(REPLICA, {}),
                    ):
                        pass
            longest = ("\N{SNOWMAN}" * 341,) * (MAX_PATTERNS // len("filter=&" + "%E2%98%83" * 341))
            async with Peer(url, PeerSettings(databases=longest)) as peer, peer.stream(REPLICA, {}) as chunks:
                assert await anext(chunks)

    run(main)


def test_a_unix_socket_needs_no_token(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")

    async def main() -> None:
        stop = trio.Event()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, create_app(node(), tokens()), [listener], stop)
                async with client(transport=httpx.AsyncHTTPTransport(uds=path), http1=True) as http:
                    assert (await http.get("http://localhost/info")).status_code == 200
                stop.set()

    run(main)


def test_tokens_from_files_are_renewed(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.write_text("first\n")
    other.write_text("reports")
    config = TokenConfig(name="reports", token_file=FilePath(other), databases=("r",))
    found = Tokens(Secret(f"file:{own}"), (config,))
    assert found.own() == "first"
    assert found.check(b"Bearer first") == Access("auth-token")
    assert found.check(b"bearer reports") == Access("reports", ("r",))
    fresh = tmp_path / "fresh"
    fresh.write_text("second")
    os.replace(fresh, own)
    assert found.check(b"Bearer first") is None
    assert (found.own(), found.check(b"Bearer second")) == ("second", Access("auth-token"))
    own.unlink()
    assert found.own() == "second", "a file that is gone changes nothing"
    own.write_text("not one token")
    assert found.check(b"Bearer second") == Access("auth-token")


def test_without_tokens_everything_is_open() -> None:
    assert Tokens().check(None) is EVERYTHING
    assert Tokens().own() is None


def test_tokens_that_cannot_be_used(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    twice = TokenConfig(name="a", token=Secret("x"))
    for own, others, words in (
        (Secret(f"file:{tmp_path}/missing"), (), "http.auth-token: cannot read"),
        (Secret(f"file:{empty}"), (), f"http.auth-token: {empty}: no token"),
        (Secret("a b"), (), "visible ASCII"),
        (Secret("x"), (twice,), "each token may be given once only"),
    ):
        with pytest.raises(ConfigError) as caught:
            Tokens(own, others)
        assert words in str(caught.value)
        assert "a b" not in str(caught.value), "a secret is not shown"


def test_a_secret_is_not_shown_by_accident() -> None:
    assert "hunter2" not in repr(TokenConfig(name="a", token=Secret("hunter2")))
