"""/db/NAME/pos and /db/NAME/wait over real sockets."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from litefs.errors import WaitTimeout
from litefs.server.positions import reached
from litefs.stream.memory import MemoryCatalog, MemorySource
from litefs.types import Position
from tests.server.support import FakeNode, client, serving
from tests.server.test_http import filled, run


def sources(*names: str) -> tuple[FakeNode, list[MemorySource]]:
    made = [filled(name) for name in names]
    return FakeNode(MemoryCatalog(*made)), made


def test_position_of_a_database() -> None:
    async def main() -> None:
        node, (source, nested) = sources("a.db", "dir/b.db")
        async with serving(node) as url, client() as http:
            answer = await http.get(f"{url}/db/a.db/pos")
            assert (answer.status_code, answer.text) == (200, f"{source.position()}\n")
            assert (await http.get(f"{url}/db/dir/b.db/pos")).text == f"{nested.position()}\n"
            assert (await http.get(f"{url}/db/c.db/pos")).status_code == 404
            assert (await http.get(f"{url}/db/..%2Fa.db/pos")).status_code == 400

    run(main)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("txid=", 400),
        ("txid=xyz", 400),
        ("txid=1/2", 400),
        ("txid=00000000000000001", 400),
        ("txid=1&timeout=-1", 400),
        ("txid=1&timeout=61", 400),
        ("txid=1&timeout=nan", 400),
        ("txid=1", 200),
        ("txid=0000000000000001", 200),
        ("txid=0", 200),
        ("txid=1&timeout=0", 200),
        ("txid=1/8000000000000001", 409),
        ("txid=0/0000000000000000", 200),
        ("txid=2&timeout=0", 504),
        ("txid=2&timeout=0.05", 504),
    ],
)
def test_what_a_wait_is_answered(query: str, status: int) -> None:
    async def main() -> None:
        node, _ = sources("a.db")
        async with serving(node) as url, client() as http:
            answer = await http.get(f"{url}/db/a.db/wait?{query}")
            assert answer.status_code == status, answer.text

    run(main)


def test_a_wait_ends_with_the_transaction() -> None:
    async def main() -> None:
        node, (source,) = sources("a.db")
        answers: list[tuple[int, str]] = []
        async with serving(node) as url, client() as http:

            async def wait(target: str) -> None:
                answer = await http.get(f"{url}/db/a.db/wait?txid={target}")
                answers.append((answer.status_code, answer.text))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, "2")
                nursery.start_soon(wait, f"2/{1 << 63:016x}")
                await trio.sleep(0.1)
                assert not answers
                source.commit({1: b"b" * 512})
                node.catalog.notify()
            position = source.position()
            assert position.txid == 2
            assert sorted(answers)[0] == (200, f"{position}\n")
            assert sorted(answers)[1][0] == 409

    run(main)


def test_a_wait_for_a_commit_that_readers_do_not_see_yet() -> None:
    async def main() -> None:
        node, (source,) = sources("a.db")
        node.unpublished = True
        async with serving(node) as url, client() as http:
            assert (await http.get(f"{url}/db/a.db/wait?txid=1&timeout=0.1")).status_code == 504
            node.unpublished = False
            answer = await http.get(f"{url}/db/a.db/wait?txid=1&timeout=0.1")
            assert Position.parse(answer.text) == source.position()

    run(main)


def test_a_wait_ends_when_the_database_is_removed() -> None:
    async def main() -> None:
        node, _ = sources("a.db")
        async with serving(node) as url, client() as http, trio.open_nursery() as nursery:

            async def remove() -> None:
                await trio.sleep(0.1)
                node.catalog.remove("a.db")

            nursery.start_soon(remove)
            assert (await http.get(f"{url}/db/a.db/wait?txid=2")).status_code == 404

    run(main)


def test_a_wait_for_what_another_history_replaced() -> None:
    """The transaction was lost in a failover; what came in its place must not be taken for it."""

    async def main() -> None:
        node, (source,) = sources("a.db")
        lost = Position(1, 1 << 63)
        node.unknown.add(lost)
        source.commit({1: b"b" * 512})
        async with serving(node) as url, client() as http:
            assert (await http.get(f"{url}/db/a.db/wait?txid=1")).status_code == 200
            assert (await http.get(f"{url}/db/a.db/wait?txid={lost}")).status_code == 409

    run(main)


class CountedSource(MemorySource):
    """Counts how often it is asked for its position."""

    asked = 0

    def position(self) -> Position:
        self.asked += 1
        return super().position()


def test_many_who_wait_do_not_look_at_each_commit() -> None:
    async def main() -> None:
        source = CountedSource("a.db")
        source.commit({1: b"a" * 512})
        node = FakeNode(MemoryCatalog(source))
        waiters, commits = 300, 50
        answered: list[int] = []

        async def wait(txid: int) -> None:
            answered.append((await reached(node, "a.db", txid, None, 10)).txid)

        async with trio.open_nursery() as nursery:
            for number in range(waiters):
                nursery.start_soon(wait, commits + 1 + number % 3)
            await trio.testing.wait_all_tasks_blocked()
            assert (source.asked, node.looks) == (waiters, 0)
            source.asked = 0
            for _ in range(commits - 1):
                source.commit({1: b"b" * 512})
                node.catalog.notify()
                await trio.testing.wait_all_tasks_blocked()
            assert source.asked == commits - 1, "one look for all at each notification"
            assert not answered
            source.asked = 0
            source.commit({1: b"c" * 512})
            node.catalog.notify()
            await trio.sleep(0.1)
            assert source.asked == 1 + waiters // 3, "only those look whose transaction it is"
            assert answered == [commits + 1] * (waiters // 3)
            assert node.looks <= 2, "one look at what readers see is for all"
            source.commit({1: b"c" * 512})
            source.commit({1: b"c" * 512})
            node.catalog.notify()
        assert len(answered) == waiters

    run(main)


def test_who_gave_up_leaves_nothing_behind() -> None:
    async def main() -> None:
        node, _ = sources("a.db")
        for txid in (5, 6):
            with pytest.raises(WaitTimeout):
                await reached(node, "a.db", txid, None, 0.01)
        assert node.waiting.count == 0

    run(main)
