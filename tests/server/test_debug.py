"""/debug over real sockets, and SQLite's locks as another process takes them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from litefs.lockview import held_locks
from litefs.server import debug
from litefs.stream.memory import MemoryCatalog
from tests.server.support import FakeNode, client, serving
from tests.server.test_http import filled, run
from tests.server.test_tokens import OWN, REPORTS, authorized, tokens

PATHS = ("/debug/vars", "/debug/rand", "/debug/stacks", "/debug/profile?seconds=0.1")


def test_variables_have_the_shape_of_go_litefs() -> None:
    async def main() -> None:
        source = filled("app.db")
        async with serving(FakeNode(MemoryCatalog(source))) as url, client() as http:
            store = (await http.get(f"{url}/debug/vars")).json()["store"]
            position = source.position()
            assert store == {
                "isPrimary": True,
                "candidate": True,
                "dbs": {
                    "app.db": {
                        "name": "app.db",
                        "txid": f"{position.txid:016x}",
                        "checksum": f"{position.checksum:016x}",
                        "locks": {"pending": "unlocked"},
                    }
                },
            }

    run(main)


def test_random_bytes_end_and_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "RANDOM_SECONDS", 0.5)

    async def main() -> None:
        path = "/debug/rand"
        async with (
            serving(FakeNode()) as url,
            client() as one,
            client() as two,
            client() as three,
            one.stream("GET", url + path) as first,
            two.stream("GET", url + path),
        ):
            pieces = first.aiter_raw()
            data = await anext(pieces)
            assert len(set(data)) == 256
            assert (await three.get(url + path)).status_code == 503
            with trio.fail_after(5):
                async for _ in pieces:
                    pass

    run(main)


def test_stacks_and_profile_name_what_runs() -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client() as http:
            stacks = (await http.get(f"{url}/debug/stacks")).text
            assert "task litefs.server.serve.serve" in stacks
            assert "in accept" in stacks
            assert "thread " in stacks
            answers: list[str] = []

            async def ask() -> None:
                answers.append((await http.get(f"{url}/debug/profile?seconds=0.5")).text)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(0.2)
                assert (await http.get(f"{url}/debug/profile")).status_code == 503
                assert (await http.get(f"{url}/info")).status_code == 200
            assert "function calls" in answers[0]
            assert "poll" in answers[0]
            for seconds in ("0", "31", "x"):
                assert (await http.get(f"{url}/debug/profile?seconds={seconds}")).status_code == 400

    run(main)


def test_only_who_may_see_everything_is_answered() -> None:
    async def main() -> None:
        async with serving(FakeNode(), tokens=tokens("reports*")) as url, client() as http:
            for path in PATHS:
                assert (await http.get(url + path)).status_code == 401
                assert (await http.get(url + path, headers=authorized(REPORTS))).status_code == 403
            assert (await http.get(f"{url}/debug/vars", headers=authorized(OWN))).status_code == 200

    run(main)


HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(sys.argv[2])
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("mode", "statement", "expected"),
    [
        ("WAL", "BEGIN IMMEDIATE", {"write": "exclusive", "dms": "shared", "shared": "shared"}),
        ("DELETE", "BEGIN IMMEDIATE", {"reserved": "exclusive", "shared": "shared", "write": "unlocked"}),
        ("DELETE", "BEGIN EXCLUSIVE", {"shared": "exclusive", "pending": "exclusive"}),
        ("DELETE", "SELECT 1", {"shared": "unlocked", "pending": "unlocked", "reserved": "unlocked"}),
    ],
)
def test_locks_of_others(mode: str, statement: str, expected: dict[str, str], tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "a.db")
    db.executescript(f"PRAGMA journal_mode={mode}; CREATE TABLE t(a)")
    line = [sys.executable, "-c", HOLD, str(tmp_path / "a.db"), statement]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = held_locks(tmp_path, ["a.db", "absent.db"])
        holder.communicate()
    db.close()
    assert {name: found["a.db"][name] for name in expected} == expected
    assert set(found["absent.db"].values()) == {"unlocked"}
    assert len(found["absent.db"]) == 3 + 9
