"""What the proxy is told of its node: how far that may be behind when nothing is heard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import pytest

from litefs import proxying
from litefs.proxying import NodeOfProxy


@dataclass
class Heard:
    lag_seconds: float | None = None


def test_the_lag_goes_on_from_what_was_known_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(proxying.time, "monotonic", lambda: now)
    heard = Heard()
    node = NodeOfProxy(cast("Any", heard), cast("Any", None))
    assert node.lag_seconds == math.inf, "it never heard of a primary"
    heard.lag_seconds = 2.0
    assert node.lag_seconds == 2.0
    heard.lag_seconds, now = None, 1003.0  # its mount is being made anew, or its role changes
    assert node.lag_seconds == 5.0
    node.was_primary()
    assert node.lag_seconds == 0.0
    now = 1011.0
    assert node.lag_seconds == 8.0
