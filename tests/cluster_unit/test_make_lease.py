"""The lease that a configuration asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from litefs.cluster.lease import Timing
from litefs.cluster.leases import make_lease
from litefs.config import Config, parse
from litefs.errors import ConfigError
from tests.support.consul import Consul
from tests.support.processes import ROOT
from tests.support.s3 import BUCKET, S3


def config_of(lease: str) -> Config:
    return parse(f"lease: {{{lease}}}\n", "litefs.yml", None)


def test_a_directory(tmp_path: Path) -> None:
    lease = make_lease(config_of(f"type: object, object: {{url: 'file://{tmp_path}/a%20b', key: c/d}}"))
    assert trio.run(lease.cluster_id, "LFSC1") == "LFSC1"
    assert (tmp_path / "a b" / "c" / "d" / "clusterid").read_text() == "LFSC1"
    assert lease.timing == Timing()


def test_an_object_store(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    lease = make_lease(config_of(f"type: object, object: {{url: 's3://{BUCKET}/made'}}"))
    assert not trio.run(lease.observe).held


def test_consul(consul_server: Consul, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = make_lease(config_of(f"type: consul, consul: {{url: '{consul_server.url}', key: made}}"))
    assert trio.run(lease.cluster_id, "LFSC1") == "LFSC1"
    for name in ("FLY_REGION", "PRIMARY_REGION"):
        monkeypatch.setenv(name, "ams")
    monkeypatch.setenv("FLY_APP_NAME", "made")
    monkeypatch.setenv("FLY_CONSUL_URL", consul_server.url)
    fly = make_lease(config_of("type: fly"))
    assert trio.run(fly.cluster_id, "LFSC2") == "LFSC2"
    assert consul_server.request("GET", "/v1/kv/litefs/made/clusterid")


def test_a_static_lease_elects_nobody() -> None:
    with pytest.raises(ConfigError, match="elects nobody"):
        make_lease(config_of("type: static"))


def test_a_store_costs_memory_only_where_it_is_used() -> None:
    code = (
        "import sys; import litefs.cluster.leases, litefs.node; "
        "assert not {'consul', 'requests', 'obstore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
