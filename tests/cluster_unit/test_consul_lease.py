"""The lease in a real Consul: sessions, lock delay, what Go LiteFS would see, and Consul's own failures."""

from __future__ import annotations

import base64
import json
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from litefs.cluster.beats import MAX_BYTES, Record, encode
from litefs.cluster.consul import ConsulLease
from litefs.cluster.consul_client import Address, Client, parse_url
from litefs.cluster.lease import Beat, Grant, LeaseLost, LeaseUnavailable, PrimaryInfo
from litefs.config_lease import ConsulConfig
from litefs.config_types import Duration
from litefs.errors import ConfigError
from litefs.types import Point
from tests.support.consul import Consul, running
from tests.support.leases import TIMING

KEY = "primary"


def beat_of(name: str, term: int) -> Beat:
    return Beat(term, sum(name.encode()), PrimaryInfo(name, f"http://{name}:20202"))


class Keys:
    """Leases and keys of one test in a Consul that others use too."""

    def __init__(self, consul: Consul, key: str = "") -> None:
        self.consul = consul
        self.key = key or f"test/{secrets.token_hex(4)}/{KEY}"

    def lease(self, lock_delay: float = 1) -> ConsulLease:
        """A node's lease."""
        config = ConsulConfig(url=self.consul.url, key=self.key, lock_delay=Duration(lock_delay))
        return ConsulLease(config, TIMING)

    def read(self) -> dict[str, Any]:
        """The lock's key as Consul's API shows it, its value decoded; {} if there is none."""
        found = self.consul.request("GET", f"/v1/kv/{self.key}")
        if not found:
            return {}
        return {**found[0], "Value": base64.b64decode(found[0]["Value"] or "").decode()}

    def session(self) -> dict[str, Any] | None:
        """The session that holds the lock."""
        sessions: list[dict[str, Any]] = self.consul.request("GET", "/v1/session/list")
        return next((found for found in sessions if found["ID"] == self.read().get("Session")), None)

    def new_session(self) -> str:
        """A session as another tool makes it."""
        body = {"Name": "other", "Behavior": "delete", "TTL": "10s", "LockDelay": "0s", "NodeChecks": []}
        answer = self.consul.request("PUT", "/v1/session/create", json.dumps(body).encode())
        return str(answer["ID"])


@pytest.fixture
def keys(consul_server: Consul) -> Keys:
    return Keys(consul_server)


async def acquire(lease: ConsulLease, name: str = "a") -> Grant:
    view = await lease.observe()
    assert not view.held
    grant = await lease.acquire(view, beat_of(name, view.beat.term + 1 if view.beat else 1))
    assert grant is not None
    return grant


def test_go_and_scripts_see_what_they_know(keys: Keys) -> None:
    async def run() -> None:
        lease = keys.lease()
        grant = await acquire(lease)
        assert json.loads(keys.read()["Value"]) == {"hostname": "a", "advertise-url": "http://a:20202"}
        session = keys.session()
        assert session is not None
        assert session["ID"] == grant.token
        assert (session["Name"], session["Behavior"], session["TTL"]) == ("litefs", "delete", "10.0s")
        assert (session["LockDelay"], session["NodeChecks"]) == (1e9, [])
        await lease.release(grant, beat_of("a", 1))
        left = keys.read()
        assert (left["Value"], left.get("Session")) == ("", None)
        assert grant.token not in [found["ID"] for found in keys.consul.request("GET", "/v1/session/list")], (
            "the session is destroyed"
        )
        assert await lease.cluster_id("LFSC0123456789ABCDEF") == "LFSC0123456789ABCDEF"
        assert keys.consul.request("GET", f"/v1/kv/{keys.key}/clusterid")[0]["Value"] == (
            base64.b64encode(b"LFSC0123456789ABCDEF").decode()
        )

    trio.run(run)


def test_a_renewal_fails_once_the_session_is_destroyed(keys: Keys) -> None:
    async def run() -> None:
        lease, other = keys.lease(), keys.lease()
        grant = await acquire(lease)
        keys.consul.request("PUT", f"/v1/session/destroy/{grant.token}", b"")
        with pytest.raises(LeaseLost, match="session ended"):
            await lease.renew(grant, beat_of("a", 1))
        view = await other.observe()
        assert view.held, "its deadline may be ahead still: to be claimed, not acquired"
        assert view.version == grant.version
        taken = await other.claim(view, beat_of("b", 2))
        assert taken is not None
        assert taken.term == 2
        await lease.release(grant, beat_of("a", 1))
        assert (await other.renew(taken, beat_of("b", 2))).deadline_ns > taken.deadline_ns

    trio.run(run)


def test_a_holder_whose_beat_is_gone_leaves_no_lock_behind(keys: Keys) -> None:
    """Nobody may take over a lock that no beat explains, before the TTL has passed twice."""

    async def run() -> None:
        lease, other = keys.lease(), keys.lease()
        grant = await acquire(lease)
        keys.consul.request("DELETE", f"/v1/kv/{keys.key}/beat")
        view = await other.observe()
        assert (view.beat, view.held) == (None, True)
        with pytest.raises(LeaseLost, match="nobody has the lease"):
            await lease.renew(grant, beat_of("a", 1))
        view = await other.observe()
        assert (view.beat, view.held) == (None, False)

    trio.run(run)


def test_a_claim_waits_the_lock_delay_and_a_release_makes_nobody_wait(keys: Keys) -> None:
    async def run() -> None:
        first, second = keys.lease(), keys.lease()
        await acquire(first)
        before = time.monotonic()
        grant = await second.claim(await second.observe(), beat_of("b", 2))
        assert grant is not None
        assert 1 <= time.monotonic() - before < 2
        await second.release(grant, beat_of("b", 2))
        before = time.monotonic()
        await acquire(first)
        assert time.monotonic() - before < 0.5

    trio.run(run)


def test_a_claim_that_waits_long_is_not_claimed_meanwhile(keys: Keys) -> None:
    async def run() -> None:
        old, new, third = keys.lease(lock_delay=4), keys.lease(lock_delay=4), keys.lease()
        await acquire(old)
        grants = []

        async def claim() -> None:
            grants.append(await new.claim(await new.observe(), beat_of("b", 2)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            view = await third.observe()
            while not grants:
                present = await third.changed(view, TIMING.term + TIMING.margin)
                assert grants or present.version != view.version, "the beat stood still"
                view = present
        assert grants[0] is not None
        assert grants[0].term == 2

    trio.run(run)


def test_a_claimant_that_died_is_displaced_with_whom_it_displaced(keys: Keys) -> None:
    async def run() -> None:
        lease, other = keys.lease(), keys.lease()
        grant = await acquire(lease)
        half = Record(beat_of("dead", 2), keys.new_session(), displaces=grant.token)
        path = f"/v1/kv/{keys.key}/beat?cas={grant.version}"
        assert keys.consul.request("PUT", path, encode(half)) is True
        with pytest.raises(LeaseLost, match="dead has the lease"):
            await lease.renew(grant, beat_of("a", 1))
        taken = await other.claim(await other.observe(), beat_of("b", 3))
        assert taken is not None
        assert keys.read()["Session"] == taken.token

    trio.run(run)


@pytest.mark.parametrize("beaten", [False, True])
def test_a_holder_without_a_beat_is_left_alone(keys: Keys, beaten: bool) -> None:
    async def run() -> None:
        lease = keys.lease()
        term = 1
        if beaten:
            await lease.release(await acquire(lease), beat_of("a", 1))
            term = 2
        session = keys.new_session()
        value = b'{"hostname":"go","advertise-url":"http://go"}'
        assert keys.consul.request("PUT", f"/v1/kv/{keys.key}?acquire={session}", value) is True
        view = await lease.observe()
        assert view.held
        assert await lease.claim(view, beat_of("a", term)) is None
        assert await lease.acquire(view, beat_of("a", term)) is None
        assert keys.read()["Session"] == session

    trio.run(run)


def test_a_consul_that_hangs_is_not_waited_for(keys: Keys) -> None:
    async def run() -> None:
        lease = keys.lease()
        grant = await acquire(lease)
        keys.consul.pause()
        try:
            for operation in (
                lambda: lease.renew(grant, beat_of("a", 1)),
                lease.observe,
                lambda: lease.release(grant, beat_of("a", 1)),
            ):
                before = time.monotonic()
                with pytest.raises(LeaseUnavailable, match=r"no answer|timed out"):
                    await operation()
                assert time.monotonic() - before < TIMING.term / 2 + 0.5
        finally:
            keys.consul.signal(signal.SIGCONT)

    trio.run(run)


def test_a_renewal_that_was_in_the_way_when_consul_hung_is_found(keys: Keys) -> None:
    async def run() -> None:
        lease = keys.lease()
        grant = await acquire(lease)
        keys.consul.pause()
        try:
            with pytest.raises(LeaseUnavailable):
                await lease.renew(grant, beat_of("a", 1))
        finally:
            keys.consul.signal(signal.SIGCONT)
        with trio.fail_after(10):
            while (await lease.observe()).version == grant.version:
                await trio.sleep(0.05)
        renewed = await lease.renew(grant, beat_of("a", 1))
        assert renewed.deadline_ns > grant.deadline_ns
        assert renewed.version == (await lease.observe()).version

    trio.run(run)


def test_consul_is_killed_and_comes_back(tmp_path: Path) -> None:
    async def run(consul: Consul) -> None:
        lease = Keys(consul, KEY).lease()
        grant = await acquire(lease)
        view = await lease.observe()
        consul.kill()
        with pytest.raises(LeaseUnavailable):
            await lease.renew(grant, beat_of("a", 1))
        with pytest.raises(LeaseUnavailable):
            await lease.changed(view, 5)
        await trio.to_thread.run_sync(consul.start)
        renewed = await lease.renew(grant, beat_of("a", 1))
        assert renewed.token == grant.token
        await lease.aclose()

    with running(tmp_path) as consul:
        trio.run(run, consul)


def test_a_session_outlives_its_ttl_while_it_is_renewed(keys: Keys) -> None:
    """Consul ends a session between once and twice its TTL, of at least 10 s, after it was renewed last."""

    async def run() -> None:
        lease = keys.lease()
        grant = await acquire(lease)
        end = trio.current_time() + 22
        while trio.current_time() < end:
            grant = await lease.renew(grant, beat_of("a", 1))
            await trio.sleep(TIMING.renew)

    trio.run(run)


def test_an_empty_cluster_id_is_no_id(keys: Keys) -> None:
    keys.consul.request("PUT", f"/v1/kv/{keys.key}/clusterid", b"")
    with pytest.raises(LeaseUnavailable, match="clusterid is empty"):
        trio.run(keys.lease().cluster_id, "LFSC1")


def test_the_largest_beat_fits(keys: Keys) -> None:
    async def run() -> None:
        lease = keys.lease()
        grant = await acquire(lease)
        names = (f"{number:0100d}.db" for number in range(MAX_BYTES // 100))
        positions = {name: Point(number, number, number) for number, name in enumerate(names)}
        beat = beat_of("a", 1)
        await lease.renew(grant, Beat(1, beat.node_id, beat.primary, positions))
        view = await lease.observe()
        assert view.beat is not None
        assert 1000 < len(view.beat.positions) < len(positions)

    trio.run(run)


def test_a_change_is_told_at_once(keys: Keys) -> None:
    async def run() -> None:
        lease, other = keys.lease(), keys.lease()
        grant = await acquire(lease)
        view = await other.observe()
        told = []

        async def watch() -> None:
            await other.changed(view, 20)
            told.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(0.5)
            assert not told
            await lease.renew(grant, beat_of("a", 1))
            renewed = trio.current_time()
        assert told[0] - renewed < 0.5
        before = trio.current_time()
        await other.changed(await other.observe(), 0.5)
        assert 0.5 <= trio.current_time() - before < 1.5

    trio.run(run)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consul]:
    """A Consul that wants a token."""
    with running(tmp_path_factory.mktemp("guarded"), acl_token="5ec2e7-token") as consul:
        yield consul


@pytest.mark.parametrize("way", ["password", "environment"])
def test_a_token(guarded: Consul, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = guarded.url
    if way == "password":
        url = url.replace("://", "://:5ec2e7-token@")
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", "another")
    else:
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", "5ec2e7-token")
    lease = ConsulLease(ConsulConfig(url=f"{url}/some/prefix", key=way), TIMING)
    grant = trio.run(acquire, lease)
    found = guarded.request("GET", f"/v1/kv/some/prefix/{way}")[0]
    assert found["Session"] == grant.token
    assert guarded.request("GET", f"/v1/session/info/{grant.token}")[0]["Node"] == "some/prefix/litefs"


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_the_right_token_the_lease_is_not_free_but_unavailable(guarded: Consul, token: str) -> None:
    lease = ConsulLease(ConsulConfig(url=guarded.url.replace("://", f"://:{token}@"), key="k"), TIMING)
    with pytest.raises(LeaseUnavailable) as caught:
        trio.run(acquire, lease)
    assert token not in str(caught.value) or not token


def test_a_token_that_may_only_read_does_not_make_another_node_quicker(guarded: Consul) -> None:
    def put(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = guarded.request("PUT", path, json.dumps(body).encode())
        return answer

    rules = 'key_prefix "" { policy = "read" } session_prefix "" { policy = "write" }'
    policy = put("/v1/acl/policy", {"Name": "reader", "Rules": rules})
    token = put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"]
    lease = ConsulLease(ConsulConfig(url=guarded.url.replace("://", f"://:{token}@"), key="k"), TIMING)
    with pytest.raises(LeaseUnavailable, match="ermission denied"):
        trio.run(acquire, lease)


def test_https_with_the_variables_of_consuls_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, tls=True) as consul:
        files = consul.certificates
        config = ConsulConfig(url=consul.https_url, key="k")
        monkeypatch.setenv("CONSUL_CLIENT_CERT", str(files / "dc1-client-consul-0.pem"))
        monkeypatch.setenv("CONSUL_CLIENT_KEY", str(files / "dc1-client-consul-0-key.pem"))
        with pytest.raises(LeaseUnavailable, match=r"CERTIFICATE_VERIFY_FAILED"):
            trio.run(acquire, ConsulLease(config, TIMING))
        monkeypatch.setenv("CONSUL_CACERT", str(files / "consul-agent-ca.pem"))
        trio.run(acquire, ConsulLease(config, TIMING))
        monkeypatch.delenv("CONSUL_CLIENT_CERT")
        with pytest.raises(LeaseUnavailable):
            trio.run(ConsulLease(config, TIMING).observe)


def test_the_configured_url_goes_before_the_environment(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    trio.run(acquire, keys.lease())
    monkeypatch.setenv("CONSUL_HTTP_ADDR", keys.consul.address)
    config = ConsulConfig(key=keys.key)
    assert trio.run(ConsulLease(config, TIMING).observe).held


@pytest.mark.parametrize(
    ("url", "environment", "address"),
    [
        ("", {}, Address("http", "127.0.0.1", 8500, "", "")),
        ("", {"CONSUL_HTTP_ADDR": "c:1"}, Address("http", "c", 1, "", "")),
        ("https://c", {}, Address("https", "c", 443, "", "")),
        ("http://:t%40k@c:8500/p/q/", {"CONSUL_HTTP_TOKEN": "x"}, Address("http", "c", 8500, "t@k", "p/q")),
        ("http://c:8500", {"CONSUL_HTTP_TOKEN": "x"}, Address("http", "c", 8500, "x", "")),
        ("http://[::1]:8500/", {}, Address("http", "[::1]", 8500, "", "")),
    ],
)
def test_urls(url: str, environment: dict[str, str], address: Address) -> None:
    assert parse_url(url, environment) == address


@pytest.mark.parametrize("url", ["ftp://:secret@c", "http://:secret@", "http://:secret@c:99999"])
def test_a_url_that_cannot_be_used_is_refused_without_its_token(url: str) -> None:
    with pytest.raises(ConfigError, match=r"lease\.consul\.url") as caught:
        parse_url(url, {})
    assert "secret" not in str(caught.value)


def test_a_session_that_is_gone_is_not_renewed(keys: Keys) -> None:
    client = Client(parse_url(keys.consul.url, {}), 1)
    session = client.create_session("", 10, 0)
    assert client.renew_session(session)
    client.destroy_session(session)
    assert not client.renew_session(session)
    client.close()
