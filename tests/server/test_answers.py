"""What a node answers where more than its HTTP server is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from litefs.answers import Answers
from litefs.errors import PeerError
from litefs.stream.memory import MemoryCatalog, MemorySource
from litefs.types import Position


def test_an_import_that_a_failover_lost_is_not_called_done(tmp_path: Path) -> None:
    """The next primary reached the same TXID with a history of its own."""
    source = MemorySource("app.db")
    source.commit({1: b"a" * 512})
    lost = Position(source.position().txid, source.position().checksum ^ 1)

    async def imported(*_: Any, **__: Any) -> Position:
        return lost

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    parts = SimpleNamespace(
        data=SimpleNamespace(path=tmp_path, database_dir=lambda name: None),
        mount=tmp_path,
        catalog=MemoryCatalog(source),
        roles=SimpleNamespace(leads=False),
        telling=SimpleNamespace(
            forwarding=SimpleNamespace(import_database=imported, receives=lambda name: True)
        ),
    )

    async def main() -> None:
        answers = Answers(cast(Any, parts))

        async def sees(name: str) -> bool:
            return True

        cast(Any, answers.waiting)._sees = sees
        with trio.fail_after(10), pytest.raises(PeerError, match="another history"):
            await answers.import_database("app.db", nothing(), check=True, peer=False)

    trio.run(main)
