"""GET /healthz and /readyz: what supervisors are told, and strangers are not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from litefs import mountprobe
from litefs.mountprobe import MountProbe
from litefs.stream.memory import MemoryCatalog, MemorySource
from tests.server.support import FakeNode, client, serving
from tests.server.test_http import run
from tests.server.test_tokens import OWN, REPORTS, authorized, tokens


def damaged() -> FakeNode:
    fake = FakeNode(MemoryCatalog(MemorySource("reports.db"), MemorySource("app.db")))
    fake.damaged = {"app.db"}
    fake.complaint = "the mount does not answer"
    return fake


def test_a_node_that_is_well() -> None:
    async def main() -> None:
        fake = FakeNode()
        async with serving(fake) as url, client() as http:
            for path, word in (
                ("/healthz", "ok\n"),
                ("/readyz", "ready\n"),
                ("/readyz?max-lag=1s", "ready\n"),
            ):
                answer = await http.get(url + path)
                assert (answer.status_code, answer.text) == (200, word)
                assert answer.headers["cache-control"] == "no-store"
            answer = await http.get(f"{url}/readyz", headers={"Accept": "application/json"})
            assert answer.json() == {"ok": True, "reasons": []}

    run(main)


def test_why_a_node_is_not_ready() -> None:
    async def main() -> None:
        fake = damaged()
        async with serving(fake) as url, client() as http:
            answer = await http.get(f"{url}/healthz")
            assert (answer.status_code, answer.text) == (503, "unhealthy\nthe mount does not answer\n")
            fake.reasons = ["its role is changing"]
            answer = await http.get(f"{url}/readyz?max-lag=100ms", headers={"Accept": "application/json"})
            assert answer.status_code == 503
            assert answer.json() == {
                "ok": False,
                "reasons": [
                    "its role is changing",
                    "it is 0.250 s behind the primary, more than 0.1 s",
                    "app.db is damaged, served for reading only",
                ],
            }
            fake.reasons, fake.damaged, fake.lag_seconds = [], set(), None
            assert (await http.get(f"{url}/readyz")).status_code == 200
            assert (await http.get(f"{url}/readyz?max-lag=1h")).status_code == 503

    run(main)


@pytest.mark.parametrize(("value", "status"), [("0.3", 200), ("1m", 200), ("0", 503), ("", 400), ("x", 400)])
def test_how_much_lag_is_allowed(value: str, status: int) -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client() as http:
            assert (await http.get(f"{url}/readyz?max-lag={value}")).status_code == status

    run(main)


def test_strangers_are_told_the_status_and_no_reasons() -> None:
    async def main() -> None:
        async with serving(damaged(), tokens=tokens("reports*")) as url, client() as http:
            for headers, reasons in (({}, 0), (authorized(REPORTS), 0), (authorized(OWN), 1)):
                for path in ("/healthz", "/readyz"):
                    answer = await http.get(url + path, headers=headers)
                    assert answer.status_code == 503
                    assert len(answer.text.splitlines()) == 1 + reasons
            for path in ("/healthz/x", "/readyz/x", "/info"):
                assert (await http.get(url + path)).status_code == 401
        async with serving(damaged(), tokens=tokens(), open_health=False) as url, client() as http:
            for path in ("/healthz", "/readyz"):
                assert (await http.get(url + path)).status_code == 401

    run(main)


class Hanging:
    """A file whose read hangs until it is let go."""

    def __init__(self) -> None:
        self.reads = 0
        self.let_go = threading.Event()

    def read_bytes(self) -> bytes:
        self.reads += 1
        self.let_go.wait(10)
        return b""


def test_a_mount_that_hangs_holds_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountprobe, "PROBE_SECONDS", 0.1)

    async def main() -> None:
        probe, hanging = MountProbe(tmp_path), Hanging()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe.run)
            assert "No such file" in await probe.complaint()
            (tmp_path / ".lag").write_text("0")
            assert await probe.complaint() == ""
            probe._file = hanging  # type: ignore[assignment]
            for _ in range(3):
                assert "within" in await probe.complaint()
            assert hanging.reads == 1
            hanging.let_go.set()
            assert await probe.complaint() == ""
            nursery.cancel_scope.cancel()

    run(main)
