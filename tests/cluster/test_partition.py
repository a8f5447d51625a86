"""The network of namespaces that tests of partitions use, and a replica that is cut off and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from litefs.cluster.peer import READ_IDLE_SECONDS
from tests.support.netns import NAMES, DelayUnsupported, Host, Network, reap
from tests.support.node import Node, wait_equal, wait_present
from tests.support.processes import Client, spawn, wait_until

PORT = 7000
SILENCE = 0.5
"""Seconds without an answer that count as silence on a link of microseconds."""


def listen(host: Host) -> socket.socket:
    return host.call(socket.create_server, (host.address, PORT))


def connect(host: Host, other: Host) -> socket.socket:
    return host.call(socket.create_connection, (other.address, PORT), SILENCE)


def test_a_cut_is_silent_for_open_and_for_new_connections(network: Network) -> None:
    one, two, three = (network.host(name) for name in ("one", "two", "three"))
    with listen(two) as server, connect(one, two) as client:
        accepted, _ = server.accept()
        accepted.settimeout(SILENCE)
        with accepted:
            client.send(b"a")
            assert accepted.recv(1) == b"a"
            network.partition(one, [two])
            client.send(b"b")
            with pytest.raises(TimeoutError):
                accepted.recv(1)
            with pytest.raises(TimeoutError):
                connect(one, two)
            connect(three, two).close()  # the third host still sees both
            with listen(one):
                connect(three, one).close()
            network.heal()
            accepted.settimeout(5)
            assert accepted.recv(1) == b"b", "what was sent meanwhile arrives afterwards"


def test_a_cut_in_one_direction_and_an_isolated_host(network: Network) -> None:
    one, two, three = (network.host(name) for name in ("one", "two", "three"))
    datagrams = two.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sender = one.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with datagrams, sender:
        datagrams.bind((two.address, PORT))
        sender.bind((one.address, PORT))
        datagrams.settimeout(SILENCE)
        sender.settimeout(SILENCE)
        network.cut(two, one)
        sender.sendto(b"there", (two.address, PORT))
        assert datagrams.recv(10) == b"there"
        datagrams.sendto(b"back", (one.address, PORT))
        with pytest.raises(TimeoutError):
            sender.recv(10)
    with listen(three):
        network.isolate(three)
        for host in (one, two):
            with pytest.raises(TimeoutError):
                connect(host, three)


def test_a_delay_is_one_or_is_refused_by_name(network: Network) -> None:
    one, two = network.host("one"), network.host("two")
    with listen(two):
        connect(one, two).close()
        try:
            network.delay(one, 0.1)
        except DelayUnsupported:
            with pytest.raises(DelayUnsupported, match="netem"):
                network.delay(two, 0.1)
        else:
            begin = time.monotonic()
            connect(one, two).close()
            assert time.monotonic() - begin >= 0.1


def test_what_a_killed_run_left_is_removed() -> None:
    script = (
        "import subprocess, sys\n"
        "from tests.support.netns import Network\n"
        "host = Network().__enter__().host('left')\n"
        "sleep = host.command(['sh', '-c', 'echo; exec sleep 1000'])\n"
        "program = subprocess.Popen(sleep, stdout=subprocess.PIPE)\n"
        "program.stdout.readline()  # it is in the namespace: nsenter enters after Popen returns\n"
        "print(host.namespace, program.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with Network() as mine:
        own = mine.host("mine")
        run = spawn([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        namespace, pid = run.stdout.readline().split()
        try:
            assert namespace not in reap(), "a run that lives keeps its networks"
            run.send_signal(signal.SIGKILL)
            run.wait(5)
            assert namespace in reap()
            assert not (NAMES / namespace).exists()
            wait_until(lambda: not os.path.exists(f"/proc/{pid}/ns/net"), 5, "the program in it ended")
            assert (NAMES / own.namespace).exists()
        finally:
            run.kill()
            run.wait(5)
            reap()
    assert not (NAMES / own.namespace).exists()


def test_a_replica_that_was_cut_off_catches_up(
    network: Network, make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    primary = make_node("primary", host=network.host("primary")).start()
    replica = make_node("replica", primary=primary, host=network.host("replica")).start()
    client = make_client("sql", "sqlite3")
    client.call("open", path=primary.path("app.db"))
    client.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
    wait_present(replica, "app.db")
    before = wait_equal(primary, replica, "app.db")
    assert primary.host is not None
    assert replica.host is not None
    network.partition(primary.host, replica.host)
    client.call("script", statements=["INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)"])
    wait_until(
        lambda: "silent for" in replica.log_tail(), READ_IDLE_SECONDS + 5, "the replica notices the silence"
    )
    assert replica.position("app.db") == before
    network.heal()
    after = wait_equal(primary, replica, "app.db")
    assert after.txid == before.txid + 2
