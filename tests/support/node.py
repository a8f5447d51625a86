"""A LiteFS node in processes of its own: configuration, start, kill, stop, and what its mount says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

import yaml

from litefs.errors import MountError
from litefs.fs.session import FSTYPE, UNDERLAY_SOURCE, abort, find_mount, lazy_unmount, mount_table
from litefs.types import Position
from tests.support.netns import Host
from tests.support.processes import (
    Client,
    ClientError,
    ClientStuck,
    children,
    end,
    holds_fuse_device,
    proc_stat,
    spawn,
    wait_until,
)

STOP_SECONDS = 5.0
"""The promise: SIGTERM and SIGINT unmount and stop within this time."""
STOP_MARGIN = 2.0
START_SECONDS = 20.0

Which = Literal["fs", "node", "both"]
_used_ports: set[int] = set()


def free_port() -> int:
    """A TCP port that is free now, and never given out twice by this process."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port: int = server.getsockname()[1]
        if port not in _used_ports:
            _used_ports.add(port)
            return port
    raise AssertionError("no free port")


class Node:
    """One node below ``root``: ``litefs.yml``, ``mnt`` (the mount), ``data``, ``node.log``.

    ``primary`` is the node whose URL the static lease names; None makes this node the primary itself.
    ``host``: where it runs, None in the network of the tests.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        primary: Node | None = None,
        host: Host | None = None,
        **overrides: Any,
    ) -> None:
        self.root = root / name
        self.name = name
        self.mount = self.root / "mnt"
        self.data = self.root / "data"
        self.log = self.root / "node.log"
        self.config = self.root / "litefs.yml"
        self.mount.mkdir(parents=True)
        self.port = free_port()
        self.host = host
        secure = "cert" in overrides.get("http", {}).get("tls", {})
        self.url = (
            f"http{'s' if secure else ''}://{host.address if host is not None else '127.0.0.1'}:{self.port}"
        )
        leader = primary or self
        settings: dict[str, Any] = {
            "fuse": {"dir": str(self.mount)},
            "data": {"dir": str(self.data)},
            "http": {"addr": f":{self.port}", **overrides.pop("http", {})},
            "lease": {
                "type": "static",
                "hostname": leader.name,
                "advertise-url": leader.url,
                "candidate": primary is None,
            },
            "log": {"format": "text"},
            **overrides,
        }
        self.config.write_text(yaml.safe_dump(settings))
        self.tls: ssl.SSLContext | None = None
        """Of the questions that the tests put to its HTTP, as are these headers."""
        self.headers: dict[str, str] = {}
        self.process: subprocess.Popen[Any] | None = None
        self._files: Client | None = None

    def launch(self, *command: str) -> subprocess.Popen[Any]:
        """Start the processes without waiting; ``command`` is run by the node (``-- CMD``)."""
        assert self.process is None, f"{self.name} already runs"
        line = [sys.executable, "-m", "litefs.cli.main", "mount", "-config", str(self.config)]
        if command:
            line += ["--", *command]
        if self.host is not None:
            line = self.host.command(line)
        with self.log.open("ab") as log:
            self.process = spawn(line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        return self.process

    def start(self, *command: str) -> Node:
        """Start and wait until HTTP and the mount answer."""
        self.launch(*command)
        self.wait_ready()
        return self

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Until ``/info`` answers and the mount can be listed."""
        wait_until(self._ready, timeout, f"{self.name} is ready\n{self.log_tail()}", 0.05)

    def _ready(self) -> bool:
        assert self.process is not None
        status = self.process.poll()
        assert status is None, f"{self.name} ended with status {status}\n{self.log_tail()}"
        mount = find_mount(self.mount)
        if mount is None or mount.fstype != FSTYPE or self.info() is None:
            return False
        try:
            self.files("list", path=str(self.mount), timeout=2)
        except (ClientError, ClientStuck):
            return False
        return True

    def info(self) -> dict[str, Any] | None:
        """The answer of ``GET /info``, or None if there is none."""
        return self.host.call(self._info) if self.host is not None else self._info()

    def _info(self) -> dict[str, Any] | None:
        request = urllib.request.Request(f"{self.url}/info", headers=self.headers)
        try:
            with urllib.request.urlopen(request, timeout=2, context=self.tls) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except (OSError, urllib.error.URLError, ValueError):
            return None

    def configure(self, section: str, settings: dict[str, Any]) -> None:
        """Set a whole section of ``litefs.yml``, before the start."""
        content = yaml.safe_load(self.config.read_text())
        self.config.write_text(yaml.safe_dump({**content, section: settings}))

    def post(self, path: str, timeout: float = 60) -> str:
        """The answer of a POST without a body. Raises OSError (HTTPError)."""
        request = urllib.request.Request(self.url + path, b"", headers=self.headers, method="POST")
        with urllib.request.urlopen(request, timeout=timeout, context=self.tls) as response:
            return str(response.read().decode())

    def files(self, operation: str, timeout: float = 10, **arguments: object) -> Any:
        """A plain file operation, done by a process that may hang in our place (see clients/files.py)."""
        if self._files is None:
            self._files = Client("files")
        try:
            return self._files.call(operation, timeout, **arguments)
        except ClientStuck:
            self._files.close()
            self._files = None
            raise

    def path(self, name: str) -> str:
        """Path of a database on the mount."""
        return str(self.mount / name)

    def position(self, name: str) -> Position | None:
        """What ``NAME-pos`` says; None while there is no such database or no answer."""
        try:
            return Position.parse(self.files("read", path=self.path(name) + "-pos", timeout=5))
        except (ClientError, ClientStuck, ValueError):
            return None

    def fs_pid(self) -> int | None:
        """The fs process: the child that holds the FUSE device."""
        if self.process is None:
            return None
        return next((pid for pid in children(self.process.pid) if holds_fuse_device(pid)), None)

    def kill(self, which: Which) -> None:
        """``kill -9`` of one or both processes; a lost node process is reaped and its fs process awaited.

        After "fs" the node comes back by itself (:meth:`wait_recovered`); after "node" and "both"
        it has to be started again.
        """
        assert self.process is not None
        fs_pid = self.fs_pid()
        if which in ("node", "both"):
            self.process.send_signal(signal.SIGKILL)
        if which in ("fs", "both") and fs_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(fs_pid, signal.SIGKILL)
        if which in ("node", "both"):
            self.process.wait(10)
            self.process = None
            if fs_pid is not None:
                wait_until(lambda: proc_stat(fs_pid) is None, 10, f"fs process {fs_pid} ends after its node")

    def wait_recovered(self, killed_fs: int | None, timeout: float = START_SECONDS) -> None:
        """After ``kill("fs")``: until another fs process serves the mount."""
        wait_until(
            lambda: self.fs_pid() not in (None, killed_fs), timeout, f"{self.name} has a new fs process", 0.05
        )
        self.wait_ready(timeout)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End the node with a signal; it must stop in time and leave no mount. Returns its exit status."""
        assert self.process is not None
        self._close_files()
        process, self.process = self.process, None
        begin = time.monotonic()
        process.send_signal(signum)
        try:
            status = process.wait(STOP_SECONDS + STOP_MARGIN)
        except subprocess.TimeoutExpired:
            end(process)
            raise AssertionError(f"{self.name} did not stop in time\n{self.log_tail()}") from None
        took = time.monotonic() - begin
        assert took <= STOP_SECONDS + STOP_MARGIN, f"{self.name} took {took:.1f} s to stop"
        assert find_mount(self.mount) is None, f"{self.name} left its mount\n{self.log_tail()}"
        return status

    def _close_files(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None

    def discard(self) -> None:
        """End whatever still runs or is mounted, in whatever state."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS + STOP_MARGIN)
        if self.process is not None:
            end(self.process)
            self.process = None
        self._close_files()
        unmount_below(self.root)

    def log_tail(self, lines: int = 60) -> str:
        """The end of the node's log, to be shown with a failure."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.log} ---\n" + "\n".join(text.splitlines()[-lines:])


def unmount_below(path: Path) -> list[str]:
    """Abort and detach every mount of a node at or below ``path``. Returns the paths of the FUSE mounts."""
    prefix = str(path)
    found = [
        mount
        for mount in mount_table()
        if (mount.fstype.startswith("fuse") or mount.source == UNDERLAY_SOURCE)
        and (mount.path + "/").startswith(prefix + "/")
    ]
    for mount in reversed(found):
        if mount.source != UNDERLAY_SOURCE:
            with contextlib.suppress(MountError):
                abort(mount.minor)
        with contextlib.suppress(MountError):
            lazy_unmount(mount.path)
    return [mount.path for mount in found if mount.source != UNDERLAY_SOURCE]


def wait_present(node: Node, name: str, timeout: float = 15) -> None:
    """Until a node has a position for a database: then it is there as a whole and can be opened."""
    wait_until(lambda: node.position(name) is not None, timeout, f"{name} appears on {node.name}", 0.05)


def wait_equal(one: Node, other: Node, name: str, timeout: float = 20) -> Position:
    """Until both nodes report the same position of a database twice in a row. Writers must be at rest."""
    deadline = time.monotonic() + timeout
    previous = None
    while True:
        positions = (one.position(name), other.position(name))
        if positions[0] is not None and positions[0] == positions[1]:
            if positions == previous:
                return positions[0]
        elif time.monotonic() > deadline:
            raise AssertionError(
                f"{name} differs after {timeout:g} s: {one.name} {positions[0]}, {other.name} {positions[1]}"
                f"\n{one.log_tail()}\n{other.log_tail()}"
            )
        previous = positions
        time.sleep(0.02)


def pages_equal(one: Node, other: Node, name: str, timeout: float = 60) -> None:
    """Assert that a database has the same pages through both mounts (``page_digest`` in clients/sql.py)."""
    with Client("sql", "sqlite3", log=one.root / "clients.log") as client:
        first = client.call("page_digest", timeout, path=one.path(name))
        second = client.call("page_digest", timeout, path=other.path(name))
    if first["digest"] != second["digest"]:
        pairs = zip(first["parts"], second["parts"], strict=False)
        differing = [number for number, (left, right) in enumerate(pairs) if left != right]
        raise AssertionError(
            f"{name}: {first['size']} bytes on {one.name}, {second['size']} on {other.name}; "
            f"MiB {differing[:20]} differ"
        )
