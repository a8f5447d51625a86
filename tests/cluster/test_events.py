"""Events of real nodes: every transaction once and in order, on primary and replica alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.listening import Listening
from tests.support.node import Node, wait_equal, wait_present
from tests.support.processes import Client

COMMITS = 150


def _txids(events: list[dict[str, Any]]) -> list[int]:
    return [int(one["txID"], 16) for one in events]


def test_transactions_and_their_pages(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql, path = make_client("sql", "sqlite3"), primary.path("app.db")
    sql.call("open", path=path)
    sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
    begin = wait_equal(primary, replica, "app.db")
    with Listening(primary, "?pages=1&db=app.db") as first, Listening(replica) as second:
        assert first.events[0]["data"] == {"isPrimary": True, "positions": {"app.db": str(begin)}}
        assert second.events[0]["data"]["hostname"] == "primary"
        sql.call("script", statements=["INSERT INTO t VALUES(randomblob(100))"] * COMMITS, timeout=60)
        sql.call("execute", statement="INSERT INTO t VALUES(zeroblob(1000)), (randomblob(10000000))")
        sql.call("script", statements=["INSERT INTO t VALUES(1)"] * 3)
        end = wait_equal(primary, replica, "app.db")
        assert end.txid == begin.txid + COMMITS + 4
        for heard in (first, second):
            heard.wait(lambda heard=heard: len(heard.of("tx", "app.db")) >= COMMITS + 4, "all transactions")
            assert _txids(heard.of("tx", "app.db")) == list(range(begin.txid + 1, end.txid + 1))
        transactions = first.of("tx", "app.db")
        assert transactions == second.of("tx", "app.db")
        assert second.of("pages", "app.db") == []
        last = transactions[-1]
        assert f"{last['txID']}/{last['postApplyChecksum']}" == str(end)
        assert (last["pageSize"], set(last)) == (
            4096,
            {"txID", "postApplyChecksum", "pageSize", "commit", "timestamp"},
        )
        pages = first.of("pages", "app.db")
        assert [one["txID"] for one in pages] == [one["txID"] for one in transactions]
        big = pages[-4]["pages"]
        assert len(big) > 10_000_000 / 4096, "a record that is read from its file"
        assert big == sorted(set(big))
        assert big[-1] <= transactions[-4]["commit"] == last["commit"]
        assert all(len(one["pages"]) < 5 for one in pages[:COMMITS])
        primary.files("unlink", path=path)
        for heard in (first, second):
            heard.wait(lambda heard=heard: heard.of("drop", "app.db") == [{}], "the removal")


def test_another_history_a_snapshot_and_what_is_lost(
    make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    primary = make_node("primary").start()
    replica = make_node("replica", primary=primary).start()
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=primary.path("app.db"))
    sql.call("script", statements=["CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"])
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    following = {"type": "static", "hostname": "primary", "advertise-url": primary.url, "candidate": False}
    replica.stop()
    replica.configure("lease", {**following, "candidate": True})
    replica.start()
    other = make_client("sql", "sqlite3")
    other.call("open", path=replica.path("app.db"))
    other.call("script", statements=["INSERT INTO t VALUES(2)"] * 3)
    with Listening(replica) as stopped:
        other.call("close")
        replica.stop()
        stopped.wait(lambda: bool(stopped.of("end")), "the end")
        assert stopped.of("end") == [{"reason": "the node stops"}]
    sql.call("execute", statement="INSERT INTO t VALUES(3)")
    sql.call("close")
    primary.stop()

    replica.configure("lease", following)
    replica.start()
    with Listening(replica) as heard:
        assert heard.events[0]["data"].get("hostname") is None
        primary.start()
        heard.wait(lambda: bool(heard.of("snapshot", "app.db")), "the snapshot")
        heard.wait(lambda: bool(heard.of("lost", "app.db")), "what is lost")
        end = wait_equal(primary, replica, "app.db")
        told = heard.of("snapshot", "app.db")[-1]
        assert f"{told['txID']}/{told['postApplyChecksum']}" == str(end)
        (lost,) = heard.of("lost", "app.db")
        assert lost["reason"] == "diverged"
        assert list((replica.data / lost["directory"]).glob("*.seg"))
        assert heard.of("primaryChange") == [{"isPrimary": False, "hostname": "primary"}]
        primary.stop()
        heard.wait(lambda: len(heard.of("primaryChange")) == 2, "the loss of the primary")
        assert heard.of("primaryChange")[1] == {"isPrimary": False}
