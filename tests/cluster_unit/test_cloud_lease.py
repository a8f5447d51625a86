"""The lease in an object store that stops answering, or is not there."""

from __future__ import annotations

import secrets
import signal
import time
from dataclasses import replace

import pytest
import trio

from litefs.cluster.lease import Beat, Grant, Lease, LeaseUnavailable, PrimaryInfo
from litefs.errors import ConfigError
from tests.support.leases import TIMING, open_lease
from tests.support.processes import pause
from tests.support.s3 import BUCKET, S3

BEAT = Beat(1, 1, PrimaryInfo("a", "http://a:20202"))


@pytest.fixture
def lease(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Lease:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return open_lease(f"s3://{BUCKET}/{secrets.token_hex(4)}", "key")


async def acquire(lease: Lease) -> Grant:
    grant = await lease.acquire(await lease.observe(), BEAT)
    assert grant is not None
    return grant


def test_a_server_that_hangs_is_not_waited_for(lease: Lease, s3_server: S3) -> None:
    async def run() -> None:
        grant = await acquire(lease)
        pause(s3_server.process.pid)
        try:
            before = time.monotonic()
            with pytest.raises(LeaseUnavailable):
                await lease.renew(grant, BEAT)
            assert time.monotonic() - before < TIMING.term
        finally:
            s3_server.process.send_signal(signal.SIGCONT)
        # What was asked meanwhile may be done now, or not.
        with trio.fail_after(10):
            renewed = await lease.renew(grant, replace(BEAT, in_sync=(1,)))
        assert renewed.deadline_ns > grant.deadline_ns
        view = await lease.observe()
        assert view.version == renewed.version
        assert view.beat == replace(BEAT, in_sync=(1,))

    trio.run(run)


def test_a_bucket_that_is_not_there_is_no_free_lease(lease: Lease) -> None:
    missing = open_lease("s3://missing", "key")
    with pytest.raises(LeaseUnavailable):
        trio.run(acquire, missing)


def test_a_server_that_refuses_connections_is_said_in_one_line(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(LeaseUnavailable) as caught:
        trio.run(open_lease("s3://leases/p", "key").observe)
    assert "s3://leases/p/key" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_url_of_no_object_store_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"lease\.object\.url: "):
        open_lease("gopher://host/path", "key")
