"""``DELETE /db/NAME``."""

from __future__ import annotations

import trio

from litefs.config_http import TokenConfig
from litefs.config_types import Secret
from litefs.tokens import Tokens
from tests.server.support import FakeNode, client, serving


def test_who_may_drop_what() -> None:
    node = FakeNode()
    node.imported = {"dir/app.db": b"x", "reports.db": b"y"}
    tokens = Tokens(
        Secret("all"), (TokenConfig(name="reports", token=Secret("some"), databases=("reports*",)),)
    )

    async def run() -> None:
        with trio.fail_after(20):
            await checked()

    async def checked() -> None:
        async with serving(node, tokens=tokens) as url, client(base_url=url) as http:

            async def drop(name: str, token: str) -> int:
                answer = await http.delete(f"/db/{name}", headers={"Authorization": f"Bearer {token}"})
                return answer.status_code

            assert await drop("dir/app.db", "none") == 401
            assert await drop("dir/app.db", "some") == 403
            assert await drop("missing.db", "some") == 403, "whether it exists or not"
            assert await drop("../app.db", "all") in (400, 404)
            assert set(node.imported) == {"dir/app.db", "reports.db"}
            assert await drop("dir/app.db", "all") == 200
            assert await drop("dir/app.db", "all") == 404
            node.is_primary = False
            assert await drop("reports.db", "some") == 503
            node.is_primary = True
            assert await drop("reports.db", "some") == 200
            assert not node.imported

    trio.run(run)
