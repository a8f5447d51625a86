"""The process log's two forms."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from litefs import logs
from litefs.config_sections import LogConfig


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def write(config: LogConfig) -> list[str]:
    stream = io.StringIO()
    logs.setup(config, stream)
    log = logging.getLogger("litefs.test")
    log.debug("hidden")
    log.info("two words %d", 1)
    log.warning("ok", extra={"db": "a b", "txid": 5, "path": ""})
    try:
        raise ValueError("why\nnot")
    except ValueError:
        log.exception("failed")
    return stream.getvalue().splitlines()


def test_text() -> None:
    lines = write(LogConfig())
    assert lines[0] == 'level=INFO msg="two words 1"'
    assert lines[1] == 'level=WARN msg=ok db="a b" txid=5 path=""'
    assert lines[2].startswith('level=ERROR msg=failed error="Traceback')
    assert len(lines) == 3


def test_json() -> None:
    lines = [json.loads(line) for line in write(LogConfig(format="json"))]
    assert lines[0] == {"level": "INFO", "msg": "two words 1"}
    assert lines[1] == {"level": "WARN", "msg": "ok", "db": "a b", "txid": 5, "path": ""}
    assert lines[2]["error"].endswith("ValueError: why\nnot")


def test_timestamp_and_debug() -> None:
    lines = [json.loads(line) for line in write(LogConfig(format="json", timestamp=True, debug=True))]
    assert [line["level"] for line in lines] == ["DEBUG", "INFO", "WARN", "ERROR"]
    assert lines[0]["time"].endswith("Z")
    assert list(lines[0]) == ["time", "level", "msg"]
