"""A third-party web application, Django's admin over a stock project, on three nodes behind their proxies."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.product.load import Load
from tests.product.product import PASSWORD, Product, submit

REQUESTS = 10_000 if "LITEFS_SOAK" in os.environ else 400
LOAD_SECONDS = REQUESTS / 10 + 60
CONNECTIONS = 8
UPLOAD = 50 << 20


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    product = Product(tmp_path_factory.mktemp("product"))
    try:
        product.start()
        yield product
    finally:
        product.discard()


def test_who_signs_up_through_a_replica_is_there_at_once(product: Product) -> None:
    replica = product.replicas()[0]
    with product.login(replica) as admin:
        assert "Site administration" in admin.get("/admin/").text
        for name in ("ada", "grace"):
            new = {"username": name, "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
            added = submit(admin, "/admin/auth/user/add/", new)
            assert added.status_code == 302, added.text
            change = added.headers["location"]
            assert name in admin.get(change).text
            assert name in admin.get(f"/admin/auth/user/?q={name}").text
            fields = {"username": name, "is_active": "on", "is_staff": "on", "date_joined_0": "2026-01-01"}
            answer = submit(admin, change, {**fields, "date_joined_1": "12:00:00"})
            assert answer.status_code == 302, answer.text
            with product.login(replica, name) as user:
                assert f"<strong>{name}</strong>" in user.get("/admin/").text


def test_a_read_waits_for_what_its_cookie_names(product: Product) -> None:
    replica, primary = product.replicas()[0], product.await_replicas()
    position = product.nodes[primary].position("app.db")
    assert position is not None
    with product.login(primary) as admin, product.login(replica) as reader:
        held = product.nodes[replica].position("app.db")
        assert held is not None
        reader.cookies.delete("__txid")
        reader.cookies.set("__txid", f"{held.txid + 1:016x}")
        found: list[str] = []
        reading = threading.Thread(target=lambda: found.append(reader.get("/admin/auth/group/").text))
        reading.start()
        reading.join(0.5)
        assert not found
        assert submit(admin, "/admin/auth/group/add/", {"name": "awaited"}).status_code == 302
        reading.join(10)
    assert "awaited" in found[0]


def test_a_websocket_through_every_proxy(product: Product) -> None:
    for name in product.nodes:
        with connect(product.url(name).replace("http:", "ws:") + "/echo", max_size=None) as socket:
            for message in ("text", "ü" * 1000, b"\x00\xff" * 300_000):
                socket.send(message)
                assert socket.recv(10) == message


def test_an_upload_of_50_mb_through_a_replica_reaches_the_primary(product: Product) -> None:
    content = random.Random(6).randbytes(UPLOAD)
    answer = httpx.post(f"{product.url(product.replicas()[0])}/digest", content=content, timeout=60).json()
    expected = {"node": product.await_replicas(), "size": UPLOAD}
    assert answer == {**expected, "digest": hashlib.sha256(content).hexdigest()}


def applied(product: Product, prefix: str) -> Counter[str]:
    """How often the application noted that a group was added, by its name; and that each is there once."""
    primary = product.await_replicas()
    groups = [
        row[0] for row in product.query(primary, f"SELECT name FROM auth_group WHERE name LIKE '{prefix}-%'")
    ]
    log = f"SELECT object_repr FROM django_admin_log WHERE object_repr LIKE '{prefix}-%'"
    noted = Counter(row[0] for row in product.query(primary, log))
    assert sorted(noted) == sorted(groups)
    return noted


def writes(asked: dict[str, int | None]) -> dict[str, int | None]:
    return {name: status for name, status in asked.items() if "read" not in name}


@pytest.mark.timeout(LOAD_SECONDS + 60)
def test_a_planned_handoff_under_load_fails_no_request(product: Product, tmp_path: Path) -> None:
    old = product.await_replicas()
    proxies = (old, product.replicas()[0])
    with ExitStack() as stack:
        loads = []
        for name in proxies:
            session = stack.enter_context(product.login(name))
            load = Load(
                session,
                f"planned-{name}",
                tmp_path,
                count=REQUESTS // 2,
                connections=CONNECTIONS // 2,
                seconds=LOAD_SECONDS,
            )
            loads.append(load)
            stack.callback(load.close)
        for load in loads:
            load.await_answers(REQUESTS // 8)
        product.nodes[old].post("/handoff")
        product.await_primary(but=old)
        results = [load.finish() for load in loads]
    for name, asked in zip(proxies, results, strict=True):
        sent = writes(asked)
        statuses = Counter(asked.values())
        assert statuses == {302: len(sent), 200: len(asked) - len(sent)}, statuses
        assert applied(product, f"planned-{name}") == Counter(dict.fromkeys(sent, 1))


@pytest.mark.timeout(LOAD_SECONDS + 60)
def test_a_kill_under_load_fails_only_what_was_in_flight(product: Product, tmp_path: Path) -> None:
    victim = product.await_replicas()
    through = product.replicas()[0]
    with product.login(through) as session:
        load = Load(
            session, "killed", tmp_path, count=REQUESTS, connections=CONNECTIONS, seconds=LOAD_SECONDS
        )
        try:
            load.await_answers(REQUESTS // 4)
            product.kill(victim)
            product.await_primary(but=victim)
            asked = load.finish()
        finally:
            load.close()
            if product.nodes[victim].process is None:
                product.launch(victim)
                product.nodes[victim].wait_ready()
                product.await_application(victim)
    sent = writes(asked)
    failed = {name for name, status in sent.items() if status != 302}
    assert len(failed) <= CONNECTIONS, Counter(sent.values())
    assert {status for name, status in asked.items() if name not in sent} == {200}
    noted = applied(product, "killed")
    assert set(noted.values()) == {1}
    assert set(sent) - failed <= set(noted) <= set(sent)
