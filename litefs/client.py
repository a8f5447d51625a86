"""For applications: where a database is, waiting for it, and who is primary. Needs nothing but Python.

Every function takes the path of a database on a LiteFS mount (``primary``, ``is_primary`` and ``lag`` that of
anything on it). Nothing here opens a database: the close of a second descriptor would drop the locks that
SQLite holds in this process. ``position``, ``primary`` and ``lag`` read the mount's control files. The others
ask the node, over the socket ``litefs.sock`` in its data directory, which the mount table names as the
device. Whoever may not write the databases has no access to that socket, nor has a container that sees the
mount alone; ``wait`` then looks at ``NAME-pos`` again and again.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from litefs.errors import DatabaseNotFound, LiteFSError, PeerError, PositionMismatch, WaitTimeout
from litefs.mountinfo import mount_table
from litefs.types import Position

StrPath: TypeAlias = str | os.PathLike[str]

SOCKET = "litefs.sock"
"""The node's socket, a name in its data directory."""

NEVER_SYNCED_MS = (1 << 31) - 1
"""What ``.lag`` shows on a replica that has not heard of a primary since it started."""

ANSWER_SECONDS = 10.0
"""How long a node may take to answer, beyond what it was asked to wait."""

LONGEST_WAIT = 60.0
"""Seconds that a node waits at most."""

HALT_SECONDS = 30.0
"""How long getting, renewing or giving up a HALT lock may take, beyond ANSWER_SECONDS."""

LOCK_SECONDS = 30.0
"""How long a HALT lock lasts from its last renewal."""

RENEW_SECONDS = 5.0
"""Between two renewals of a HALT lock."""

_FIRST_POLL, _LONGEST_POLL = 0.001, 0.02
"""Seconds between two looks at ``NAME-pos``."""


class NotOnMount(LiteFSError):
    """A path that is on no LiteFS mount which this process can see."""


class NodeUnreachable(PeerError):
    """The node cannot be asked: its socket is out of reach, or the node is gone."""


class NoAnswer(NodeUnreachable):
    """The node has its socket, but did not answer, or not in time."""


class HaltLost(LiteFSError):
    """The HALT lock ended before it was given up: what was committed until then is safe, nothing after it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path is: its mount, its name there (that of the database), and the node's socket."""

    mount: Path
    name: str
    socket: Path


def locate(path: StrPath) -> Place:
    """Find the mount of a path; the path itself need not exist. Raises NotOnMount, OSError."""
    absolute = Path(os.path.abspath(path))
    parent = absolute.parent.resolve()
    device = os.stat(absolute if absolute.is_dir() else parent).st_dev
    whole = absolute.resolve() if absolute.is_dir() else parent / absolute.name
    found = None
    for mount in mount_table():
        if (mount.major, mount.minor) != (os.major(device), os.minor(device)):
            continue
        if mount.fstype == "fuse.litefs" and whole.is_relative_to(mount.path):
            found = mount  # the last one covers the others
    if found is None:
        raise NotOnMount(f"{os.fspath(path)}: not on a LiteFS mount")
    inside = whole.relative_to(found.path)
    name = str(Path(found.root.lstrip("/")) / inside)
    return Place(Path(found.path), "" if name == "." else name, Path(found.source) / SOCKET)


def position(path: StrPath) -> Position:
    """The last transaction that this node has of a database. Raises DatabaseNotFound, OSError."""
    try:
        text = Path(f"{os.fspath(path)}-pos").read_text("ascii")
    except FileNotFoundError:
        raise DatabaseNotFound(f"{os.fspath(path)}: database not found") from None
    return Position.parse(text)


def wait(path: StrPath, target: Position | int, timeout: float = 5.0) -> Position:
    """Wait until a transaction that begins now on this node sees ``target`` (a position, or a TXID alone) or
    what came after it; returns the position then.

    ``timeout``: seconds, at most 60 where the node is asked. Raises WaitTimeout, NoAnswer, DatabaseNotFound,
    PositionMismatch if the node's history is another one: it has that TXID with another checksum, as far as
    the node's log tells.
    """
    deadline = time.monotonic() + timeout
    txid = target.txid if isinstance(target, Position) else target
    try:
        place, seconds = locate(path), min(max(0.0, timeout), LONGEST_WAIT)
        wanted = str(target) if isinstance(target, Position) else f"{txid:016x}"
        url = f"/db/{quote(place.name)}/wait?txid={wanted}&timeout={seconds:.3f}"
        return Position.parse(_request(place, "GET", url, seconds).decode())
    except NoAnswer:
        raise  # what ``NAME-pos`` shows may not be announced to readers, if nobody is there to do so
    except (NodeUnreachable, NotOnMount):
        return _watch(path, target, txid, deadline)


def _watch(path: StrPath, target: Position | int, txid: int, deadline: float) -> Position:
    pause = _FIRST_POLL
    while (at := position(path)).txid < txid:
        if time.monotonic() + pause > deadline:
            raise WaitTimeout(f"{os.fspath(path)}: at {at}, not at {txid:016x}")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL)
    if isinstance(target, Position) and at.txid == txid and at != target:
        raise PositionMismatch(f"{os.fspath(path)}: at {at}, which is another history")
    return at


def primary(path: StrPath) -> str | None:
    """The primary's hostname while this node is a replica that is connected to it, else None.

    Raises NotOnMount, OSError.
    """
    try:
        return (locate(path).mount / ".primary").read_text().rstrip("\n")
    except FileNotFoundError:
        return None


def is_primary(path: StrPath) -> bool:
    """Whether this node is the primary. Raises NotOnMount, NodeUnreachable, LiteFSError, OSError."""
    return bool(json.loads(_request(locate(path), "GET", "/info"))["isPrimary"])


def lag(path: StrPath) -> float | None:
    """Seconds that this node is behind the primary, 0 on the primary; None: it has not heard of one yet.

    Raises NotOnMount, OSError.
    """
    milliseconds = int((locate(path).mount / ".lag").read_text())
    return None if milliseconds == NEVER_SYNCED_MS else milliseconds / 1000


@contextmanager
def halt(path: StrPath) -> Iterator[None]:
    """Write a database from a replica: connections that are opened inside the block may write.

    The primary's write lock is held meanwhile, so nobody else writes, and each commit is in the primary's log
    before it is answered. A commit that fails inside the block may or may not have happened; the lock is lost
    then. On the primary this does nothing. Raises DatabaseNotFound, NodeUnreachable or PeerError if the lock
    cannot be had; HaltLost at the end if it was lost.
    """
    place = locate(path)
    url = f"/halt?name={quote(place.name, safe='')}&id={1 + secrets.randbits(62)}"
    _request(place, "POST", url, HALT_SECONDS)
    stop, lost = threading.Event(), list[LiteFSError]()

    def renew() -> None:
        renewed = time.monotonic()
        while not stop.wait(RENEW_SECONDS):
            asked = time.monotonic()
            try:
                _request(place, "POST", f"{url}&renew=1", HALT_SECONDS)
                renewed = asked
                lost.clear()
            except LiteFSError as error:
                lost[:] = [error]  # for now: whatever is not a refusal (status 409) may pass
                if isinstance(error, PositionMismatch) or time.monotonic() - renewed > LOCK_SECONDS:
                    return

    renewer = threading.Thread(target=renew, name="litefs-halt", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join()
        with suppress(LiteFSError):  # it expires in any case
            _request(place, "DELETE", url, HALT_SECONDS)
    if lost:
        raise HaltLost(f"{os.fspath(path)}: the HALT lock was lost: {lost[0]}")


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket, reached by way of its directory: its own path may be too long (unix(7))."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        except BaseException:
            self.sock.close()
            raise
        finally:
            os.close(directory)


_ERRORS = {404: DatabaseNotFound, 409: PositionMismatch, 504: WaitTimeout}


@contextmanager
def _connected(place: Place, timeout: float) -> Iterator[_Connection]:
    connection = _Connection(place.socket, timeout)
    try:
        connection.connect()
        yield connection
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise NodeUnreachable(f"{place.socket}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"{place.socket}: {error}") from error
    finally:
        connection.close()


def _request(place: Place, method: str, url: str, seconds: float = 0.0) -> bytes:
    """The body of the node's answer, which may take ``seconds``. Raises what the node says as LiteFSError."""
    with _connected(place, seconds + ANSWER_SECONDS) as connection:
        connection.request(method, url)
        response = connection.getresponse()
        body = response.read()
    if response.status != 200:
        message = body.decode(errors="replace").strip() or response.reason
        raise _ERRORS.get(response.status, PeerError)(message)
    return body
