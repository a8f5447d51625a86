"""A store that drops connections, refuses, is slow, and loses answers to what it did."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from litefs.backup import bucket
from litefs.backup.target import Target
from litefs.backup.targets import TargetOptions, open_target
from litefs.config_types import Secret
from litefs.errors import ArchiveUnavailable
from tests.support import faulty_s3, s3
from tests.support.faulty_s3 import Mode, Proxy

SECONDS = 1.0


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with (
        s3.running(tmp_path_factory.mktemp("s3")) as server,
        faulty_s3.before(server.endpoint) as running,
    ):
        yield running


@pytest.fixture
def target(proxy: Proxy) -> Iterator[Target]:
    options = TargetOptions(access_key_id="test", secret_access_key=Secret("test"), seconds=SECONDS)
    target = open_target(f"s3://{s3.BUCKET}/{uuid.uuid4()}?endpoint={proxy.endpoint}", options)
    target.write("a/there", bytes(range(200)))
    proxy.requests.clear()
    yield target
    proxy.mode = ""
    proxy.fail()


@pytest.mark.parametrize("mode", ["drop", "503", "slow", "lost"])
def test_one_failure_is_not_noticed(target: Target, proxy: Proxy, mode: Mode) -> None:
    def failing() -> Target:
        proxy.fail(mode)
        return target

    assert failing().write("a/new", b"x", create=True), "it is ours, whichever try it was"
    assert not failing().write("a/new", b"y", create=True)
    assert failing().write("a/other", b"y")
    assert failing().read("a/there", 5, 2) == b"\x05\x06"
    assert failing().size("a/there") == 200
    assert [found.name for found in failing().entries("a/")] == ["new", "other", "there"]
    assert failing().directories("") == ["a"]
    failing().delete(["a/other"])
    assert failing().write("a/parts", (bytes(1 << 20) for _ in range(6)))
    assert target.size("a/parts") == 6 << 20
    if mode == "lost":
        assert proxy.requests[:3] == ["PUT lost", "PUT", "HEAD"]


@pytest.mark.parametrize("mode", ["drop", "503", "hang"])
def test_a_store_that_stays_away_is_given_up_in_time(target: Target, proxy: Proxy, mode: Mode) -> None:
    proxy.mode = mode
    for call in (
        lambda: target.write("a/new", b"x", create=True),
        lambda: target.read("a/there"),
        lambda: list(target.entries("a/")),
    ):
        begun = time.monotonic()
        with pytest.raises(ArchiveUnavailable) as caught:
            call()
        assert time.monotonic() - begun < 4 * SECONDS + 2
        assert "s3://" in str(caught.value)
        assert "test" not in str(caught.value), "no credentials"
    assert len(proxy.requests) > 3, "it was tried again"
    proxy.mode = ""
    assert target.write("a/new", b"x", create=True)


def test_a_stream_goes_on_after_lost_connections(
    target: Target, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "LAST_PIECE", 1 << 20)
    data = bytes(range(256)) * (5 << 12)
    target.write("a/big", data)
    reader = target.open("a/big")
    got = b""
    while piece := reader.read(300_000):
        got += piece
        proxy.fail("drop", "cut", "lost")
    reader.close()
    assert got == data
    assert proxy.requests.count("GET cut") > 2


def test_a_stream_is_of_one_version(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "FIRST_PIECE", 1 << 10)
    target.write("a/big", b"1" * 3000)
    reader = target.open("a/big")
    assert reader.read(10) == b"1" * 10
    target.write("a/big", b"2" * 3000)
    assert reader.read(5000) == b"1" * 1014
    with pytest.raises(ArchiveUnavailable, match="replaced while it was read"):
        reader.read(1)


def test_a_create_that_was_refused_for_another_one_under_way_is_tried_again(
    target: Target, proxy: Proxy
) -> None:
    """S3 answers so while it does not know yet how another conditional write ends."""
    proxy.fail("409")
    assert target.write("a/new", b"x", create=True)
