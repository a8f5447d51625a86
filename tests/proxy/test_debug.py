"""``proxy.debug``."""

from __future__ import annotations

import logging

import pytest
import trio

from tests.proxy.support import Echo, FakeNode, running


@pytest.mark.parametrize("debug", [False, True])
def test_each_request_is_logged_if_asked_for(debug: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        with trio.fail_after(10):
            async with running(Echo(), FakeNode(), debug=debug) as setup:
                await (await setup.connect()).get("/one?two=3")

    with caplog.at_level(logging.INFO, "litefs"):
        trio.run(ask)
    assert any("/one?two=3" in line for line in caplog.messages) is debug
