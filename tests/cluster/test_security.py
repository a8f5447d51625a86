"""Real nodes with certificates and tokens: replication, what the commands need, renewal while they run."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from litefs.cli.main import main
from litefs.client import halt
from litefs.cluster.follow import SLOW_DELAY
from tests.support.certificates import Authority
from tests.support.node import Node, wait_equal, wait_present
from tests.support.processes import Client, wait_until

OWN, REPORTS = "the-cluster's-own", "for-reports-only"
RETRIED = SLOW_DELAY + 10
"""Seconds until a replica that was turned away has surely asked again."""


class Cluster:
    """Certificates for all, a token, and nodes that have both."""

    def __init__(self, root: Path, make_node: Callable[..., Node]) -> None:
        self.authority = Authority(root / "pki")
        self.token = root / "token"
        self.token.write_text(OWN + "\n")
        self.make_node = make_node

    def node(
        self,
        name: str,
        primary: Node | None = None,
        *,
        http: dict[str, Any] | None = None,
        databases: Sequence[str] = (),
    ) -> Node:
        """A node that is not started; ``http`` and ``databases`` go into its configuration."""
        cert, key = self.authority.issue(name)
        tls = {"cert": str(cert), "key": str(key), "ca": str(self.authority.ca)}
        lease: dict[str, Any] = {"type": "static", "hostname": "primary", "candidate": primary is None}
        if primary is not None:
            lease |= {"advertise-url": primary.url, "databases": [*databases]}
        settings = {"tls": tls, "auth-token": f"file:{self.token}", **(http or {})}
        node = self.make_node(name, primary=primary, http=settings, lease=lease)
        self.introduce(node)
        return node

    def introduce(self, node: Node, token: str = OWN) -> None:
        """Let the tests' own questions to ``node`` through."""
        cert, key = self.authority.issue("tests")
        node.tls = ssl.create_default_context(cafile=str(self.authority.ca))
        node.tls.load_cert_chain(cert, key)
        node.headers = {"Authorization": f"Bearer {token}"}


@pytest.fixture
def cluster(tmp_path: Path, make_node: Callable[..., Node]) -> Cluster:
    return Cluster(tmp_path, make_node)


def fill(make_client: Callable[..., Client], node: Node, *names: str) -> None:
    for name in names:
        client = make_client("sql", "sqlite3")
        client.call("open", path=node.path(name))
        client.call(
            "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"]
        )


def test_replication_over_mutual_tls_with_a_token(
    cluster: Cluster, make_client: Callable[..., Client]
) -> None:
    primary = cluster.node("primary").start()
    replica = cluster.node("replica", primary).start()
    fill(make_client, primary, "app.db")
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    with halt(replica.path("app.db")):
        writer = make_client("sql", "sqlite3")
        writer.call("open", path=replica.path("app.db"))
        writer.call("execute", statement="INSERT INTO t VALUES(2)")
        writer.close()
    wait_equal(primary, replica, "app.db")
    for context, headers in ((primary.tls, {}), (ssl.create_default_context(), primary.headers)):
        primary.tls, primary.headers = context, headers
        assert primary.info() is None, "neither a certificate nor a token is enough"


def test_commands_take_what_they_need_from_a_nodes_configuration_or_from_flags(
    cluster: Cluster,
    make_client: Callable[..., Client],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = [{"name": "reports", "token": REPORTS, "databases": ["reports*"]}]
    primary = cluster.node("primary", http={"tokens": tokens}).start()
    replica = cluster.node("replica", primary).start()
    fill(make_client, primary, "app.db")
    wait_present(replica, "app.db")
    target, (cert, key) = str(tmp_path / "copy.db"), cluster.authority.issue("admin")
    export = ["export", "-name", "app.db"]
    assert main([*export, "-config", str(replica.config), target]) == 0
    assert main(["import", "-name", "reports.db", "-config", str(replica.config), target]) == 0
    flags = [*export, "-url", primary.url, "-ca", str(cluster.authority.ca)]
    identified = [*flags, "-cert", str(cert), "-key", str(key)]
    assert main([*identified, "-token", f"file:{cluster.token}", target]) == 0
    monkeypatch.setenv("LITEFS_TOKEN", OWN)
    assert main([*identified, target]) == 0
    capsys.readouterr()
    for line, token, words in (
        (identified, "", "wants a token (status 401): give one in LITEFS_TOKEN"),
        (identified, "wrong", "does not accept our token (status 401)"),
        (identified, REPORTS, "our token is not for database app.db (status 403)"),
        (flags, OWN, "the peer wants a certificate from us"),
        ([*export, "-url", primary.url], OWN, "an authority that this node does not know"),
        ([*export, "-url", primary.url.replace("https", "http")], OWN, "speaks TLS: let its URL"),
        ([*flags, "-cert", str(cert)], OWN, "-cert and -key belong together"),
    ):
        monkeypatch.setenv("LITEFS_TOKEN", token)
        assert main([*line, target]) != 0
        assert words in capsys.readouterr().err
    monkeypatch.setenv("LITEFS_TOKEN", OWN)
    asked = [replica.url, *identified[identified.index("-ca") :]]
    assert main(["status", "-url", *asked]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if ".db" in line}
    assert rows == {"app.db", "reports.db"}, "found on the primary, with the same token and certificates"
    monkeypatch.setenv("LITEFS_TOKEN", REPORTS)
    limited = [primary.url, *asked[1:]]
    assert main(["databases", "-url", *limited]) == 0
    assert "app.db" not in capsys.readouterr().out
    assert main(["drop", "-yes", "-url", *limited, "app.db"]) == 1
    assert "our token is not for database app.db (status 403)" in capsys.readouterr().err


def test_certificates_and_tokens_are_renewed_while_nodes_run(
    cluster: Cluster, make_client: Callable[..., Client]
) -> None:
    primary = cluster.node("primary").start()
    replica = cluster.node("replica", primary).start()
    fill(make_client, primary, "app.db")
    wait_present(replica, "app.db")
    cluster.authority.issue("replica", lifetime=-datetime.timedelta(minutes=1))
    fs = replica.fs_pid()
    replica.kill("fs")  # then it connects anew, and shows that certificate; its own HTTP has it, too
    wait_until(lambda: replica.fs_pid() not in (None, fs), 20, "the replica serves again")
    wait_until(lambda: "our certificate has expired" in replica.log_tail(), 20, "the replica is turned away")
    client = make_client("sql", "sqlite3")
    client.call("open", path=primary.path("app.db"))
    client.call("script", statements=["INSERT INTO t VALUES(2)"])
    cluster.authority.issue("replica")
    wait_equal(primary, replica, "app.db", RETRIED)
    cluster.token.write_text("another")
    assert primary.info() is None
    cluster.introduce(primary, "another")
    assert primary.info() is not None
    client.call("script", statements=["INSERT INTO t VALUES(3)"])
    wait_equal(primary, replica, "app.db")


def test_a_replica_gets_the_databases_of_its_token_and_filter(
    cluster: Cluster, make_client: Callable[..., Client]
) -> None:
    tokens = [{"name": "reports", "token": REPORTS, "databases": ["reports*"]}]
    primary = cluster.node("primary", http={"tokens": tokens}).start()
    limited = cluster.node("limited", primary, http={"auth-token": REPORTS})
    cluster.introduce(limited, REPORTS)
    limited.start()
    chosen = cluster.node("chosen", primary, databases=["*.new", "app.db"]).start()
    fill(make_client, primary, "app.db", "reports.db", "reports.new", "other.db")
    for node, expected in ((limited, {"reports.db", "reports.new"}), (chosen, {"app.db", "reports.new"})):
        for name in expected:
            wait_present(node, name)
            wait_equal(primary, node, name)
        listed = node.files("list", path=str(node.mount))
        assert {name for name in listed if name.endswith((".db", ".new"))} == expected
    chosen.stop()
    text = chosen.config.read_text().replace("*.new", "reports.db")
    chosen.config.write_text(text)
    chosen.start()
    wait_present(chosen, "reports.db")
    assert "reports.new: not in lease.databases; what is here stays as it is" in chosen.log_tail()
    assert chosen.position("reports.new") is not None


def test_a_node_that_is_turned_away_says_why_and_comes_in_once_that_is_mended(
    cluster: Cluster, make_client: Callable[..., Client]
) -> None:
    primary = cluster.node("primary").start()
    fill(make_client, primary, "app.db")
    secret = cluster.token.with_name("secret")
    secret.write_text("wrong")
    replica = cluster.node("replica", primary, http={"auth-token": f"file:{secret}"})
    replica.launch()
    wait_until(
        lambda: "does not accept our token (status 401)" in replica.log_tail(), 20, "the replica is refused"
    )
    assert "wrong" not in replica.log.read_text()
    secret.write_text(OWN)
    replica.wait_ready()
    wait_present(replica, "app.db", RETRIED)


def test_a_certificate_that_cannot_be_used_ends_the_start(cluster: Cluster) -> None:
    node = cluster.node("primary")
    cluster.authority.ca.write_text("no certificate")
    assert node.launch().wait(20) == 2
    assert f"http.tls.ca: {cluster.authority.ca} holds no certificate" in node.log_tail()
