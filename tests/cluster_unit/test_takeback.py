"""A primary that takes back what it lost, over HTTP, from replicas that have logs and no mount."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from io import BytesIO
from pathlib import Path

import pytest
import trio

from litefs.cluster.giveback import give_back
from litefs.cluster.peer import Peer, PeerSettings, Refused, TailsWanted
from litefs.config_http import TokenConfig
from litefs.config_types import Secret
from litefs.errors import ClusterMismatch
from litefs.security import Security
from litefs.server.serve import bind
from litefs.store.log import Log
from litefs.store.paths import DataDir
from litefs.store.tails import copy_tail
from litefs.stream.handshake import request_headers
from litefs.stream.protocols import Identity
from litefs.takeback import TakeBack
from litefs.tokens import Tokens
from litefs.types import Position
from tests.server.support import CLUSTER, OTHER_CLUSTER, client
from tests.store.support import Writer

NAME = "app.db"
OWN, REPORTS = "own-token", "token-of-reports"
TOKENS = Tokens(Secret(OWN), (TokenConfig(name="reports", token=Secret(REPORTS), databases=(NAME,)),))
PRIMARY = Identity(0xA1, CLUSTER, 1, "primary")
REPLICA = Identity(0xB2, CLUSTER, 1)
SECONDS = 1.0

Offer = Callable[[str], Awaitable[None]]


class Member:
    """A node's data directory with one database, made by a transaction for each letter of ``history``: two of
    them have as much in common as these words."""

    def __init__(self, root: Path, name: str, history: str) -> None:
        self.data = DataDir(root / name)
        directory = self.data.database_dir(NAME)
        directory.create()
        writer = Writer(directory, root / f"{name}.source")
        writer.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        for letter in history:
            writer.run(f"INSERT INTO t (v) VALUES ('{letter}')")
        writer.close()

    def tip(self) -> Position:
        log = Log.open(self.data.database_dir(NAME).log)
        log.close()
        return log.tip

    def tail(self, after: Position) -> bytes:
        file = BytesIO()
        assert copy_tail(self.data.database_dir(NAME).log, after, self.tip().txid, file)
        return file.getvalue()

    async def give(
        self, url: str, identity: Identity = REPLICA, settings: PeerSettings | None = None
    ) -> bool:
        """Connect once, as a follower does; whether anything was wanted. Raises PeerError."""
        held = {NAME: self.tip()}
        async with Peer(url, settings) as peer:
            try:
                async with peer.stream(identity, held):
                    raise AssertionError("the primary streams")
            except TailsWanted as wanted:
                await give_back(self.data, lambda: identity, peer, wanted.after, held)
                return True
            except Refused:
                return False


def take_back(member: Member, offer: Offer, tokens: Tokens | None = None) -> float:
    """What a primary does at its start in another boot, while ``offer`` is made; returns its seconds."""

    async def run() -> float:
        sockets = bind("127.0.0.1:0")
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        security = Security(tokens or Tokens(), None, PeerSettings())
        began = trio.current_time()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(offer, url)
                await TakeBack(member.data, security, lambda: PRIMARY, SECONDS).run(sockets, trio.Event())
                took = trio.current_time() - began
        sockets[0].close()
        return took

    (member.data.path / "streamed").write_text("another boot\n")
    took = trio.run(run)
    assert not (member.data.path / "streamed").exists(), "it would be asked for again"
    assert not (member.data.path / "tails").exists()
    return took


@pytest.fixture
def primary(tmp_path: Path) -> Member:
    return Member(tmp_path, "primary", "abc")


async def post(url: str, tail: bytes, after: Position, identity: Identity = REPLICA, token: str = "") -> int:
    headers = request_headers(identity) | ({"Authorization": f"Bearer {token}"} if token else {})
    async with client(headers=headers) as http:
        response = await http.post(f"{url}/tail?name={NAME}&after={after}", content=tail)
        return response.status_code


@pytest.mark.parametrize(
    ("offered", "wanted"),
    [(["abcde", "abcxyz", "abc"], ["abcde", "abcxyz"]), (["abcxyz", "abcde", "ab"], ["abcxyz"])],
)
def test_the_longest_tail_is_taken(
    tmp_path: Path, primary: Member, offered: list[str], wanted: list[str]
) -> None:
    members = {history: Member(tmp_path, history, history) for history in offered}
    asked: list[str] = []

    async def offer(url: str) -> None:
        for history, member in members.items():
            while await member.give(url):
                asked.append(history)

    took = take_back(primary, offer)
    assert primary.tip() == members["abcxyz"].tip()
    assert asked == wanted
    assert took < SECONDS + 5


@pytest.mark.parametrize("history", ["abxyz", "xbcde"])
def test_another_history_is_not_taken(tmp_path: Path, primary: Member, history: str) -> None:
    other, before = Member(tmp_path, "other", history), primary.tip()
    statuses: list[int] = []

    async def offer(url: str) -> None:
        assert await other.give(url), "it has more transactions, so it is asked"
        foreign = other.tail(Position())
        for after in (before, Position(), Position(4, 1 << 63)):
            statuses.append(await post(url, foreign, after))

    take_back(primary, offer)
    assert primary.tip() == before
    assert statuses == [400, 409, 409]


def test_strangers_are_not_asked(tmp_path: Path, primary: Member) -> None:
    replica, before = Member(tmp_path, "replica", "abcde"), primary.tip()
    elsewhere, nowhere = Identity(0xB2, OTHER_CLUSTER, 1), Identity(0xB2, "", 1)
    limited, own = (PeerSettings(Tokens(Secret(token))) for token in (REPORTS, OWN))
    statuses: list[int] = []

    async def offer(url: str) -> None:
        assert not await replica.give(url, settings=limited)
        assert not await replica.give(url, nowhere, own)
        with pytest.raises(ClusterMismatch):
            await replica.give(url, elsewhere, own)
        tail = replica.tail(before)
        for identity, token in ((REPLICA, ""), (REPLICA, REPORTS), (nowhere, OWN), (elsewhere, OWN)):
            statuses.append(await post(url, tail, before, identity, token))
        async with client(headers={"Authorization": f"Bearer {OWN}"}) as http:
            statuses.append((await http.get(f"{url}/info")).status_code)

    take_back(primary, offer, TOKENS)
    assert primary.tip() == before
    assert statuses == [401, 403, 409, 409, 503]


@pytest.mark.parametrize("complete", [True, False])
def test_a_tail_that_is_on_its_way_is_waited_for(tmp_path: Path, primary: Member, complete: bool) -> None:
    """But not for one that breaks off."""
    replica, before = Member(tmp_path, "replica", "abcde"), primary.tip()

    async def offer(url: str) -> None:
        tail = replica.tail(before)
        headers = request_headers(REPLICA) | {"Content-Length": str(len(tail))}

        async def slowly() -> AsyncIterator[bytes]:
            yield tail[:100]
            await trio.sleep(SECONDS + 0.5)
            if not complete:
                raise ConnectionResetError
            yield tail[100:]

        async with client(headers=headers) as http:
            try:
                answer = await http.post(f"{url}/tail?name={NAME}&after={before}", content=slowly())
                assert (complete, answer.status_code) == (True, 200)
            except ConnectionResetError:
                assert not complete

    took = take_back(primary, offer)
    assert primary.tip() == (replica.tip() if complete else before)
    assert SECONDS + 0.5 <= took < SECONDS + 5


def test_nobody_is_waited_for_without_a_reason(primary: Member) -> None:
    """No replica ever was; the machine did not go down; or this node is told to stop."""

    async def run(stop: trio.Event) -> float:
        sockets = bind("127.0.0.1:0")
        began = trio.current_time()
        with trio.fail_after(20):
            security = Security(Tokens(), None, PeerSettings())
            await TakeBack(primary.data, security, lambda: PRIMARY, 30).run(sockets, stop)
        sockets[0].close()
        return trio.current_time() - began

    async def stream() -> None:
        await TakeBack(
            primary.data, Security(Tokens(), None, PeerSettings()), lambda: PRIMARY, 30
        ).before_stream()

    note = primary.data.path / "streamed"
    assert trio.run(run, trio.Event()) < 0.5
    trio.run(stream)
    assert note.exists()
    assert trio.run(run, trio.Event()) < 0.5
    note.write_text("another boot\n")
    stop = trio.Event()
    stop.set()
    assert trio.run(run, stop) < 5
    assert note.read_text() == "another boot\n", "the next start would not ask"
