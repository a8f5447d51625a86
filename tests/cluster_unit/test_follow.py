"""A follower against the real server and against peers that are something else."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from litefs.cluster.follow import Backoff, Callbacks, check_primary, follow
from litefs.cluster.peer import Peer
from litefs.errors import ClusterMismatch, FormatError, LiteFSError, PeerError, ProtocolMismatch
from litefs.stream.handshake import Hello
from litefs.stream.memory import MemoryCatalog, MemorySink, MemorySource
from litefs.stream.protocols import Identity
from tests.server.support import CLUSTER, OTHER_CLUSTER, FakeNode, serving

SEED = random.SystemRandom().randrange(1 << 32)


class Replica:
    """A follower with a memory sink, and what it reported."""

    def __init__(self, cluster_id: str = CLUSTER, **options: float) -> None:
        self.sink = MemorySink()
        self.identity = Identity(0xB2, cluster_id, 1, "replica")
        self.adopted: list[str] = []
        self.hellos: list[Hello] = []
        self.errors: list[LiteFSError | None] = []
        self.options = options

    async def adopt(self, cluster_id: str) -> None:
        self.adopted.append(cluster_id)

    @asynccontextmanager
    async def following(self, url: str) -> AsyncIterator[None]:
        callbacks = Callbacks(self.adopt, self.hellos.append, self.errors.append)

        async def run() -> None:
            await follow(url, self.sink, lambda: self.identity, callbacks, **self.options)  # type: ignore[arg-type]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield
            nursery.cancel_scope.cancel()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(25):
            await test()

    print(f"seed {SEED}")
    trio.run(bounded)


def filled(name: str, pages: int = 20) -> MemorySource:
    source = MemorySource(name)
    rng = random.Random(SEED)
    source.commit({pgno: rng.randbytes(512) for pgno in range(1, pages + 1)})
    return source


async def until(sink: MemorySink, condition: Callable[[], bool]) -> None:
    while not condition():
        await sink.changed.wait_change(sink.changed.revision)


def test_a_follower_keeps_up_and_survives_restarts_of_the_primary() -> None:
    async def main() -> None:
        source, rng = filled("app.db"), random.Random(SEED)
        node, replica = FakeNode(MemoryCatalog(source)), Replica()
        async with serving(node) as url, replica.following(url):
            await until(replica.sink, lambda: replica.sink.ready_count == 1)
            assert replica.hellos[0].identity.hostname == "primary-host"
            for _ in range(200):
                at = source.commit({rng.randint(1, 20): rng.randbytes(512)})
                node.catalog.notify()
            await replica.sink.wait_position("app.db", at)
            node.is_primary = False
            node.catalog.notify()
            while not replica.errors:
                await trio.sleep(0.01)
            assert replica.errors == [None]
            at = source.commit({1: b"n" * 512})
            node.is_primary = True
            await replica.sink.wait_position("app.db", at)
            assert replica.sink.snapshots == ["app.db"]
            assert replica.sink.pages["app.db"] == source.pages

    run(main)


def test_an_empty_cluster_id_is_adopted_and_another_one_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        node = FakeNode(MemoryCatalog(filled("a")))
        async with serving(node) as url:
            fresh, foreign = Replica(""), Replica(OTHER_CLUSTER)
            async with fresh.following(url), foreign.following(url):
                await until(fresh.sink, lambda: fresh.sink.ready_count == 1)
                assert fresh.adopted == [CLUSTER]
                while OTHER_CLUSTER not in caplog.text:
                    await trio.sleep(0.01)
                assert foreign.hellos == []
                assert foreign.sink.at == {}

    with caplog.at_level(logging.WARNING, "litefs.cluster"):
        run(main)


def test_a_checksum_mismatch_leads_to_a_snapshot() -> None:
    async def main() -> None:
        source = filled("a")
        node, replica = FakeNode(MemoryCatalog(source)), Replica()
        async with serving(node) as url, replica.following(url):
            await until(replica.sink, lambda: replica.sink.ready_count == 1)
            replica.sink.pages["a"][2] = b"!" * 512
            at = source.commit({1: b"x" * 512})
            node.catalog.notify()
            await until(replica.sink, lambda: len(replica.sink.snapshots) == 2)
            assert replica.sink.at["a"].position == at
            assert replica.sink.pages["a"] == source.pages

    run(main)


def test_a_record_that_cannot_be_read_leads_to_a_snapshot() -> None:
    class Rejecting(MemorySink):
        refused = 0

        async def records(self, name: str, bodies: Any) -> Any:
            if bytes(bodies[0][:8]) == b"\x02" + bytes(7) and not self._building:
                self.refused += 1
                raise FormatError("record 2: file checksum differs")
            return await super().records(name, bodies)

    async def main() -> None:
        source = filled("a")
        node, replica = FakeNode(MemoryCatalog(source)), Replica()
        sink = replica.sink = Rejecting()
        async with serving(node) as url, replica.following(url):
            await until(sink, lambda: sink.ready_count >= 1)
            at = source.commit({1: b"x" * 512})
            node.catalog.notify()
            await sink.wait_position("a", at)
            assert sink.refused == 1
            assert len(sink.snapshots) == 2
            at = source.commit({1: b"y" * 512})
            node.catalog.notify()
            await sink.wait_position("a", at)
            assert len(sink.snapshots) == 2

    run(main)


def test_what_fails_for_lack_of_space_is_tried_again_without_losing_the_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class FullDisk(MemorySink):
        full = True
        refused = 0

        async def snapshot_begin(self, name: str, *rest: Any) -> None:
            if self.full and name == "bad":
                self.refused += 1
                raise OSError(28, "No space left on device")
            await super().snapshot_begin(name, *rest)

    async def main() -> None:
        bad, good = filled("bad"), filled("good")
        node, replica = FakeNode(MemoryCatalog(bad, good)), Replica("")
        sink = replica.sink = FullDisk()
        stored = 0

        async def adopt(cluster_id: str) -> None:
            nonlocal stored
            stored += 1
            if stored == 1:
                raise OSError(28, "No space left on device")

        replica.adopt = adopt  # type: ignore[method-assign]
        async with serving(node) as url, replica.following(url):
            await until(sink, lambda: sink.ready_count >= 1)
            assert stored == 2
            for number in range(100):
                at = good.commit({1: bytes([number]) * 512})
                node.catalog.notify()
                await sink.wait_position("good", at)
                await trio.sleep(0.01)
            assert 1 <= sink.refused <= 5
            assert replica.errors == [], "the connection was given up for one database"
            sink.full = False
            await sink.wait_position("bad", bad.position())
        assert replica.errors == [None], "who stops following says so"
        assert "No space left" in caplog.text

    with caplog.at_level(logging.WARNING, "litefs.cluster"):
        run(main)


def test_a_silent_primary_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        node, replica = FakeNode(MemoryCatalog(filled("a"))), Replica(read_idle=0.3)
        async with serving(node) as url, replica.following(url):
            while len(replica.hellos) < 2:
                await trio.sleep(0.01)
            assert "silent for 0.3 s" in str(replica.errors[0])

    run(main)


async def answer(stream: trio.SocketStream, reply: bytes) -> None:
    """Send ``reply`` to whatever comes, then wait for the peer to leave."""
    async with stream:
        try:
            await stream.receive_some(4096)
            await stream.send_all(reply)
            while await stream.receive_some(4096):
                pass
        except trio.BrokenResourceError:
            return


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "does not speak HTTP/2"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "does not speak HTTP/2"),
        (bytes(100), "does not speak HTTP/2"),
        (b"", "no answer|closed"),
    ],
)
def test_peers_that_are_no_node_get_a_clear_error(
    reply: bytes, message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litefs.cluster.peer.ANSWER_SECONDS", 0.3)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        replica = Replica()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, lambda stream: answer(stream, reply), listeners)
            async with replica.following(f"http://127.0.0.1:{port}"):
                while not caplog.records:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.WARNING, "litefs.cluster"):
        run(main)
    assert any(part in caplog.text for part in message.split("|")), caplog.text


@pytest.mark.parametrize("body", [b"\0\0\0\1\0\0\0\0\0\0\0\0", b"LFSTRM\r\n\0\2\0\0", b"hello"])
def test_another_protocol_over_http2_gets_a_clear_error(
    body: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impostor:
        """Sends what another program would send as its stream."""

        def __init__(self, *args: object, **options: object) -> None:
            self._chunks = [body]
            self.sources: dict[int, object] = {}

        async def __aenter__(self) -> Impostor:
            return self

        async def __aexit__(self, *args: object) -> None:
            pass

        async def __anext__(self) -> bytes:
            if not self._chunks:
                await trio.sleep_forever()
            return self._chunks.pop()

    monkeypatch.setattr("litefs.server.replication.Sender", Impostor)

    async def main() -> None:
        replica = Replica()
        async with serving(FakeNode()) as url, replica.following(url):
            while not caplog.records:
                await trio.sleep(0.01)
            assert replica.hellos == []

    with caplog.at_level(logging.WARNING, "litefs.cluster"):
        run(main)
    assert "stream offset" in caplog.text


def test_an_unreachable_primary_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        replica = Replica(reconnect_delay=0.1)
        async with replica.following("http://127.0.0.1:1"):
            await trio.sleep(0.8)

    with caplog.at_level(logging.WARNING, "litefs.cluster"):
        run(main)
    assert len(caplog.records) == 1
    assert "cannot connect" in caplog.text


def test_backoff_doubles_to_its_limit_with_jitter() -> None:
    backoff = Backoff(1.0, random.Random(SEED))
    for ceiling in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert ceiling / 2 <= backoff.delay() <= ceiling
    backoff.reset()
    assert backoff.delay() <= 0.05


@pytest.mark.parametrize(
    ("peer", "error"),
    [
        (Identity(1, CLUSTER, 3), None),
        (Identity(2, CLUSTER, 3), PeerError),
        (Identity(1, OTHER_CLUSTER, 3), ClusterMismatch),
        (Identity(1, "", 3), ProtocolMismatch),
        (Identity(1, CLUSTER, 2), PeerError),
    ],
)
def test_which_primaries_may_be_followed(peer: Identity, error: type[LiteFSError] | None) -> None:
    own = Identity(2, CLUSTER, 3)
    if error is None:
        check_primary(own, Hello(peer, 0))
        return
    with pytest.raises(error):
        check_primary(own, Hello(peer, 0))


def test_a_mistake_of_the_http_library_does_not_end_the_node() -> None:
    """httpcore 1.0 releases its semaphore once too often after a request that was cancelled."""
    with pytest.raises(PeerError, match="released too many times"), Peer("http://127.0.0.1:1").translated():
        raise ValueError("semaphore released too many times")
