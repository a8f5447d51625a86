"""Stores of leases: each test that asks for ``store`` runs once on each of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import consul, s3
from tests.support.processes import Client


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def consul_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[consul.Consul]:
    with consul.running(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture(params=["directory", "s3", "consul"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a lease store that nobody used."""
    if request.param == "directory":
        return f"file://{tmp_path}/store"
    if request.param == "consul":
        return f"{request.getfixturevalue('consul_server').url}/{secrets.token_hex(4)}"
    server: s3.S3 = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.BUCKET}/{secrets.token_hex(4)}"


@pytest.fixture
def contender(store: str, tmp_path: Path) -> Iterator[Callable[[str], Client]]:
    """Starts a node that wants the lease, by its host name (tests/support/clients/lease.py)."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(
            Client("lease", store, "key", name, log=tmp_path / f"{name}.log")
        )
