"""The helper for applications: when a HALT lock counts as lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from litefs.client import HaltLost, Place, halt, halting
from litefs.errors import LiteFSError, PeerError, PositionMismatch


class FakeNode:
    """Answers renewals with ``errors`` in turn (None: success), then with the last one again and again."""

    def __init__(self, *errors: LiteFSError | None) -> None:
        self.errors = list(errors)
        self.renewals = 0
        self.is_held = False

    def request(self, place: Place, method: str, url: str, seconds: float = 0.0) -> bytes:
        self.is_held = method != "DELETE"
        if "renew" in url:
            error = self.errors[min(self.renewals, len(self.errors) - 1)]
            self.renewals += 1
            if error is not None:
                raise error
        return b""


def halted(node: FakeNode, renewals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the lock until the node was asked so often, or no more."""
    monkeypatch.setattr(halting, "locate", lambda path: Place(Path("/"), "a.db", Path("/litefs.sock")))
    monkeypatch.setattr(halting, "request", node.request)
    monkeypatch.setattr(halting, "RENEW_SECONDS", 0.01)
    deadline = time.monotonic() + 5
    with halt("a.db"):
        assert node.is_held
        while node.renewals < renewals and time.monotonic() < deadline:
            time.sleep(0.005)
    assert not node.is_held


def test_a_renewal_that_fails_once_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the primary is not reached for a moment: the lock lasts on meanwhile."""
    node = FakeNode(None, PeerError("unreachable"), None)
    halted(node, 5, monkeypatch)
    assert node.renewals >= 5


def test_a_lock_is_not_called_kept_when_the_last_renewal_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(None, PeerError("unreachable"))
    with pytest.raises(HaltLost, match="unreachable"):
        halted(node, 3, monkeypatch)


@pytest.mark.parametrize(
    ("error", "lasts"), [(PositionMismatch("not held"), 30.0), (PeerError("unreachable"), 0.03)]
)
def test_a_lock_that_cannot_be_held_any_more_is_lost(
    error: LiteFSError, lasts: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halting, "LOCK_SECONDS", lasts)
    node = FakeNode(error)
    with pytest.raises(HaltLost, match=str(error)):
        halted(node, 1 if lasts > 1 else 6, monkeypatch)
    assert not node.is_held
