"""``POST /backup/snapshot`` and the figures of drills."""

from __future__ import annotations

from litefs.server.view import DrillFigures
from litefs.stream.memory import MemoryCatalog
from tests.server.support import FakeNode, client, serving
from tests.server.test_http import filled, run


def test_a_snapshot_answers_with_the_transactions() -> None:
    async def main() -> None:
        async with (
            serving(FakeNode(MemoryCatalog(filled("a.db"), filled("b/c.db")))) as url,
            client() as http,
        ):
            answer = await http.post(f"{url}/backup/snapshot")
            assert answer.status_code == 200
            assert set(answer.json()) == {"a.db", "b/c.db"}
            answer = await http.post(f"{url}/backup/snapshot", params={"name": "b/c.db"})
            assert set(answer.json()) == {"b/c.db"}
            assert (await http.post(f"{url}/backup/snapshot?name=none.db")).status_code == 404
            assert (await http.post(f"{url}/backup/snapshot?name=../x")).status_code == 400
            assert (await http.get(f"{url}/backup/snapshot")).status_code == 405

    run(main)


def test_drills_are_in_the_metrics() -> None:
    node = FakeNode()
    node.drilled = [DrillFigures("a.db", False, 12.5, 3.25, 7, 4, 1)]

    async def main() -> None:
        async with serving(node) as url, client() as http:
            text = (await http.get(f"{url}/metrics")).text
        for line in (
            'litefs_archive_verify_sound{db="a.db"} 0.0',
            'litefs_archive_verify_seconds{db="a.db"} 3.25',
            'litefs_archive_verify_txid{db="a.db"} 7.0',
            'litefs_archive_verify_runs_total{db="a.db"} 4.0',
            'litefs_archive_verify_failures_total{db="a.db"} 1.0',
        ):
            assert line in text

    run(main)
