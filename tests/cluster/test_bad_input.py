"""Bad input, end to end: a clear error, and nothing is lost."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from litefs.fs.session import is_mounted
from tests.support.node import Node, free_port, pages_equal, wait_equal, wait_present
from tests.support.processes import ROOT, Client, wait_until

START_FAILURE_SECONDS = 15


def litefs(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "litefs.cli.main", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=START_FAILURE_SECONDS, check=False
    )


def fails(node: Node, message: str) -> int:
    """Start a node that must refuse to start, with ``message`` on stderr and no mount. Returns its status."""
    done = litefs("mount", "-config", node.config)
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert message in output
    assert "Traceback" not in output
    return done.returncode


def rewrite(node: Node, section: str, **values: object) -> None:
    settings = yaml.safe_load(node.config.read_text())
    settings[section].update(values)
    node.config.write_text(yaml.safe_dump(settings))


def test_configuration_that_is_not_yaml(make_node: Callable[..., Node]) -> None:
    node = make_node("primary")
    node.config.write_text("fuse: [unclosed\n")
    assert fails(node, str(node.config)) == 2


def test_unknown_key(make_node: Callable[..., Node]) -> None:
    node = make_node("primary")
    rewrite(node, "fuse", colour="red")
    assert fails(node, "colour") == 2


@pytest.mark.parametrize("inside", ["", "data"])
def test_data_directory_in_the_mount(inside: str, make_node: Callable[..., Node]) -> None:
    node = make_node("primary")
    rewrite(node, "data", dir=str(node.mount / inside))
    assert fails(node, "data directory") == 2
    assert not is_mounted(node.mount)


def test_mountpoint_with_files_in_it(make_node: Callable[..., Node]) -> None:
    node = make_node("primary")
    (node.mount / "precious").write_text("kept")
    fails(node, "not empty")
    assert (node.mount / "precious").read_text() == "kept"


def test_mountpoint_and_data_directory_in_use(make_node: Callable[..., Node]) -> None:
    first = make_node("first").start()
    same_mount = make_node("same-mount")
    rewrite(same_mount, "fuse", dir=str(first.mount))
    fails(same_mount, str(first.mount))
    same_data = make_node("same-data")
    rewrite(same_data, "data", dir=str(first.data))
    assert first.process is not None
    fails(same_data, str(first.process.pid))
    # The node that runs is not disturbed.
    assert first.files("list", path=str(first.mount)) is not None
    first.stop()


def test_replica_with_the_data_of_another_cluster(
    make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    other = make_node("other").start()
    client = make_client("sql", "sqlite3")
    client.call("open", path=other.path("app.db"))
    client.call(
        "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES('mine')"]
    )
    client.call("close")
    position = other.position("app.db")
    other.stop()

    primary = make_node("primary").start()
    replica = make_node("replica", primary=primary)
    rewrite(replica, "data", dir=str(other.data))
    replica.launch()
    wait_until(lambda: "cluster" in replica.log.read_text(), 15, "the replica complains about the cluster")
    replica.discard()
    other.start()
    assert other.position("app.db") == position


def serve_garbage(server: socket.socket, answer: bytes) -> None:
    """Answer every connection with the same bytes until the socket closes."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(1)
            try:
                connection.recv(4096)
                connection.sendall(answer)
            except OSError:
                continue


@pytest.mark.parametrize(
    "answer",
    [b"\x00\xff" * 500, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"],
    ids=["noise", "http1"],
)
def test_peer_that_speaks_garbage(answer: bytes, make_node: Callable[..., Node]) -> None:
    server = socket.create_server(("127.0.0.1", free_port()))
    thread = threading.Thread(target=serve_garbage, args=(server, answer))
    thread.start()
    try:
        replica = make_node("replica")
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        rewrite(replica, "lease", candidate=False, **{"advertise-url": url, "hostname": "liar"})
        replica.launch()
        wait_until(lambda: url in replica.log.read_text(), 15, "the replica names the peer")
        assert "Traceback" not in replica.log.read_text()
        assert replica.process is not None
        assert replica.process.poll() is None, "a bad peer is no reason to end"
        replica.stop()
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def post(url: str, body: bytes) -> int:
    request = urllib.request.Request(url, data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_import_under_a_name_that_could_escape(make_node: Callable[..., Node]) -> None:
    node = make_node("primary").start()
    before = sorted(path.relative_to(node.root) for path in node.data.rglob("*"))
    for name in ("../evil.db", "a/../../evil.db", "/evil.db", "..", "a\0b", "x-wal", ""):
        query = urllib.parse.urlencode({"name": name})
        status = post(f"{node.url}/import?{query}", b"SQLite format 3\0" + bytes(4080))
        assert status == 400, f"{name!r}: {status}"
        assert sorted(path.relative_to(node.root) for path in node.data.rglob("*")) == before, name
    assert not list(node.root.rglob("evil*"))
    node.stop()


def test_import_of_what_is_no_database_changes_nothing(
    tmp_path: Path, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    client = make_client("sql", "sqlite3")
    client.call("open", path=primary.path("app.db"))
    client.call(
        "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES('kept')"]
    )
    wait_present(replica, "app.db")
    position = wait_equal(primary, replica, "app.db")
    for number, content in enumerate([b"", b"no database", b"SQLite format 3\0" + b"\xff" * 8176]):
        path = tmp_path / f"junk{number}"
        path.write_bytes(content)
        done = litefs("import", "-url", primary.url, "-name", "app.db", path)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr.startswith("ERROR"), done.stderr
        assert "Traceback" not in done.stderr
        assert litefs("import", "-url", primary.url, "-name", "new.db", path).returncode == 1
    assert "new.db" not in primary.files("list", path=str(primary.mount))
    assert primary.position("app.db") == position
    assert client.call("execute", statement="SELECT a FROM t") == [["kept"]]
    pages_equal(primary, replica, "app.db")
