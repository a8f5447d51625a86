"""The main job, live: a primary and a replica on loopback, one application writing, another reading.

Run it by `make demo`; Ctrl-C ends it. Everything it makes lies in one scratch directory, which it removes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 60.0
"""Bound on mounting, and on the first row's way to the replica."""
STOP_SECONDS = 10.0
CATCH_UP_SECONDS = 10.0
WRITE_INTERVAL = 0.01
READ_INTERVAL = 0.001
REPORT_INTERVAL = 0.25
"""Seconds between two status lines."""
DATABASE = "demo.db"

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def start(*argv: str, stdout: int | None, stderr: int | None = None) -> subprocess.Popen[str]:
    """Start a process that Ctrl-C does not reach (we stop them in order) and that dies with us."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        bufsize=1,
        start_new_session=True,
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
    )


def stop(process: subprocess.Popen[str]) -> int:
    """SIGTERM, and SIGKILL if that is not heard; the exit code."""
    process.terminate()
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(STOP_SECONDS)


@dataclass
class Node:
    """One LiteFS node: a directory with its litefs.yml, its data and its log, and the mount beside them."""

    home: Path
    port: int
    primary_port: int
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    @property
    def mount(self) -> Path:
        return self.home / "mount"

    @property
    def log(self) -> Path:
        return self.home / "node.log"

    def launch(self) -> None:
        """Write the configuration and start the node."""
        self.mount.mkdir(parents=True)
        config = self.home / "litefs.yml"
        config.write_text(
            f"fuse:\n  dir: {self.mount}\n"
            f"data:\n  dir: {self.home / 'data'}\n"
            f"http:\n  addr: 127.0.0.1:{self.port}\n"
            "lease:\n  type: static\n"
            f"  candidate: {str(self.port == self.primary_port).lower()}\n"
            f"  hostname: localhost\n  advertise-url: http://127.0.0.1:{self.primary_port}\n"
        )
        argv = (sys.executable, "-m", "litefs.cli.main", "mount", "-config", str(config))
        with self.log.open("w") as log:
            self.process = start(*argv, stdout=log.fileno(), stderr=log.fileno())

    def wait_mounted(self) -> None:
        """Raises DemoError if the node ends or its mount does not come."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while not os.path.ismount(self.mount):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the node in {self.home.name} did not mount:\n{self.log.read_text()}")
            time.sleep(0.05)

    def position(self) -> str:
        """Transaction and checksum, as the mount tells them."""
        return (self.mount / f"{DATABASE}-pos").read_text().strip()

    def shut_down(self) -> None:
        """Stop the node. Raises DemoError if its mount stays."""
        if self.process is None:
            return
        code = stop(self.process)
        if code != 0:
            raise DemoError(f"the node in {self.home.name} ended with {code}:\n{self.log.read_text()}")
        if os.path.ismount(self.mount):
            raise DemoError(f"{self.mount} is still mounted")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(server.getsockname()[1]) for server in sockets]


def write_rows(path: str) -> None:
    """The application on the primary: one row per transaction, each with the time of its writing."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY, written REAL, text TEXT)")
    running = True

    def end(_signum: int, _frame: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, end)
    rows = 0
    while running:
        rows += 1
        text = f"event number {rows}"
        connection.execute("INSERT INTO event (written, text) VALUES (?, ?)", (time.time(), text))
        print(json.dumps({"rows": rows}), flush=True)
        time.sleep(WRITE_INTERVAL)
    connection.close()


def read_rows(path: str) -> None:
    """The application on the replica: reports the rows it sees, and how old each was at first sight."""
    deadline = time.monotonic() + START_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            sys.exit("the database did not appear on the replica")
        time.sleep(READ_INTERVAL)
    connection = sqlite3.connect(path, isolation_level=None)
    last, lags, reported = 0, [], 0.0
    while True:
        with contextlib.suppress(sqlite3.OperationalError):  # the table comes with the second transaction
            rows = connection.execute(
                "SELECT id, written FROM event WHERE id > ? ORDER BY id", (last,)
            ).fetchall()
            now = time.time()
            lags += [now - written for _, written in rows]
            last = rows[-1][0] if rows else last
        if lags and time.monotonic() - reported > REPORT_INTERVAL:
            print(json.dumps({"rows": last, "lags": lags}), flush=True)
            lags, reported = [], time.monotonic()
        time.sleep(READ_INTERVAL)


class Screen:
    """One line that is written over on a terminal, and one line after the other elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._open = False

    def status(self, text: str) -> None:
        print(f"\r\x1b[2K{text}" if self._live else text, end="" if self._live else "\n", flush=True)
        self._open = self._live

    def say(self, text: str) -> None:
        print(f"\n{text}" if self._open else text, flush=True)
        self._open = False


class Watch:
    """Both applications, and what they have reported so far; a thread reads each one's lines."""

    def __init__(self, writer: subprocess.Popen[str], reader: subprocess.Popen[str]) -> None:
        self.writer, self.reader = writer, reader
        self.written = self.seen = 0
        self.lags: list[float] = []
        self.recent: list[float] = []
        self._threads = [
            threading.Thread(target=self._collect, args=(process,), daemon=True)
            for process in (writer, reader)
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            report = json.loads(line)
            if process is self.writer:
                self.written = report["rows"]
            else:
                self.lags += report["lags"]
                self.seen, self.recent = report["rows"], report["lags"]

    def check(self) -> None:
        """Raises DemoError if an application ended by itself."""
        for name, process in (("writing", self.writer), ("reading", self.reader)):
            if process.poll() is not None:
                raise DemoError(f"the {name} application ended with {process.returncode}")

    def line(self) -> str:
        """The status line; the lag is the worst since the one before."""
        lag = f"{max(self.recent) * 1000:6.1f} ms" if self.recent else "  none yet"
        return (
            f"rows written on the primary {self.written:6,} | seen on the replica {self.seen:6,} | lag {lag}"
        )

    def stop_writer(self) -> None:
        """End the writing application and take in its last line."""
        stop(self.writer)
        self._threads[0].join(STOP_SECONDS)

    def close(self) -> None:
        """End what still runs."""
        for process, thread in zip((self.writer, self.reader), self._threads, strict=True):
            stop(process)
            thread.join(STOP_SECONDS)
            if process.stdout:
                process.stdout.close()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextlib.contextmanager
def cluster(screen: Screen) -> Iterator[tuple[Node, Node]]:
    """A mounted primary and replica; afterwards both are stopped, replica first, and all is removed."""
    scratch = Path(tempfile.mkdtemp(prefix="litefs-demo-"))
    ports = free_ports(2)
    nodes = [
        Node(scratch / name, port, ports[0]) for name, port in zip(("primary", "replica"), ports, strict=True)
    ]
    try:
        for node in nodes:
            screen.say(f"starting the {node.home.name}: {node.home}/litefs.yml, mounted on {node.mount}")
            node.launch()
            node.wait_mounted()
        yield nodes[0], nodes[1]
    finally:
        # A second Ctrl-C must not leave a mount behind; everything below is bounded.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        screen.say("unmounting and stopping both nodes")
        problems = []
        for node in reversed(nodes):
            try:
                node.shut_down()
            except DemoError as error:
                problems.append(str(error))
        if problems:
            raise DemoError("\n".join(problems))
        shutil.rmtree(scratch)


def demo(seconds: float | None) -> None:
    """Run until Ctrl-C, or for ``seconds``. Raises DemoError."""
    screen = Screen()
    with cluster(screen) as (primary, replica):
        source, copy = str(primary.mount / DATABASE), str(replica.mount / DATABASE)
        screen.say(f"an application inserts a row every {WRITE_INTERVAL * 1000:.0f} ms into {source}")
        screen.say(f"another one reads them from {copy}")
        watch = Watch(
            start(sys.executable, __file__, "--write", source, stdout=subprocess.PIPE),
            start(sys.executable, __file__, "--read", copy, stdout=subprocess.PIPE),
        )
        try:
            deadline = time.monotonic() + seconds if seconds else float("inf")
            screen.say(f"running for {seconds:g} s" if seconds else "Ctrl-C ends the demo")
            with contextlib.suppress(KeyboardInterrupt):
                while time.monotonic() < deadline:
                    time.sleep(REPORT_INTERVAL)
                    watch.check()
                    screen.status(watch.line())
            finish(screen, watch, primary, replica)
        finally:
            watch.close()


def finish(screen: Screen, watch: Watch, primary: Node, replica: Node) -> None:
    """After the last write: every row must come into sight, and both nodes to the same position."""
    watch.stop_writer()
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while watch.seen < watch.written or primary.position() != replica.position():
        if time.monotonic() > deadline:
            raise DemoError(
                f"the replica saw {watch.seen} of {watch.written} rows; "
                f"its position is {replica.position()}, the primary's {primary.position()}"
            )
        time.sleep(READ_INTERVAL)
    screen.say(f"the same {watch.written:,} rows on both nodes, at position {primary.position()}")
    median, tail = percentile(watch.lags, 0.5) * 1000, percentile(watch.lags, 0.99) * 1000
    screen.say(
        f"lag from the insert to the row's sight on the replica: median {median:.1f} ms, p99 {tail:.1f} ms"
    )


def main() -> int:
    """Parse the arguments and run the demo or one of its two applications."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="stop by itself after this time")
    parser.add_argument("--write", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--read", metavar="PATH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_rows(arguments.write)
    elif arguments.read:
        read_rows(arguments.read)
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            demo(arguments.seconds)
        except DemoError as error:
            print(f"\nERROR: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
