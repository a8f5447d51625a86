"""The real fs process with a scripted node process: this test process holds the node's end of the link.

The mount is used only by child processes, each wait is bounded, and :func:`serving` leaves neither mount nor process behind.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from litefs.errors import MountError
from litefs.fs import session
from litefs.link.channel import socketpair
from litefs.link.messages import (
    FOREVER,
    MAX_MESSAGE,
    AnyMessage,
    Message,
    Mounted,
    RoleSet,
    SetRole,
    Start,
    Stop,
)
from litefs.link.rules import SyncRules
from litefs.types import Role

T = TypeVar("T", bound=Message)
_decoder = msgspec.msgpack.Decoder(AnyMessage)


class Fs:
    """A running fs process."""

    def __init__(self, data: Path, mount: Path, log: Path, sync: SyncRules | None = None) -> None:
        self.data, self.mount = data, mount
        self.seen: list[AnyMessage] = []
        mount.mkdir(exist_ok=True)
        self._socket, theirs = socketpair()
        self._socket.settimeout(20)
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._log = open(log, "ab")  # noqa: SIM115 - closed with the process
        fds = (theirs.fileno(), self.wake)
        argv = [sys.executable, "-m", "litefs.fs.main", *map(str, fds)]
        self.process = subprocess.Popen(argv, pass_fds=fds, stdin=subprocess.DEVNULL, stderr=self._log)
        theirs.close()
        self.send(Start(str(data), str(mount), node_id=1, sync=sync or SyncRules()))
        self.mounted = self.expect(Mounted)

    def send(self, message: Message) -> None:
        self._socket.send(msgspec.msgpack.encode(message))

    def expect(self, kind: type[T]) -> T:
        """The next message of that type; the others are kept in ``seen``."""
        while True:
            data = self._socket.recv(MAX_MESSAGE)
            assert data, "the fs process closed the link"
            message = _decoder.decode(data)
            self.seen.append(message)
            if isinstance(message, kind):
                return message

    def become(self, role: Role, deadline_ns: int = FOREVER) -> None:
        self.send(SetRole(role, term=1, deadline_ns=deadline_ns))
        self.expect(RoleSet)

    def stop(self) -> None:
        self.send(Stop())
        self.process.wait(10)
        assert not session.is_mounted(self.mount)

    def hang_up(self) -> None:
        """The node process is gone."""
        self._socket.close()

    def close(self) -> None:
        """Whatever state it is in: no process and no mount stay."""
        if self.process.poll() is None:
            self._socket.close()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        if session.is_mounted(self.mount):
            session.abort_mount(self.mount)
            with contextlib.suppress(MountError):  # aborting may have removed it
                session.lazy_unmount(self.mount)
        self._socket.close()
        os.close(self.wake)
        self._log.close()


@contextlib.contextmanager
def serving(tmp_path: Path, role: Role = Role.PRIMARY, sync: SyncRules | None = None) -> Iterator[Fs]:
    """An fs process over ``tmp_path/data`` and ``tmp_path/mnt``, by default as primary for ever."""
    fs = Fs(tmp_path / "data", tmp_path / "mnt", tmp_path / "fs.log", sync)
    try:
        if role is not Role.NONE:
            fs.become(role)
        yield fs
    finally:
        fs.close()
        print((tmp_path / "fs.log").read_text(errors="replace")[-4000:])


def python(script: str, *args: object, timeout: float = 30) -> str:
    """Run a script in another process; its standard output. Fails with its standard error."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def wait_for(
    condition: Callable[[], bool], seconds: float = 10, what: str = "it", step: float = 0.02
) -> None:
    """Poll until true; fails after the bound."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"no {what} within {seconds} s"
        time.sleep(step)
