"""HALT: writing a database from a replica."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

from litefs.client.asking import request
from litefs.client.place import StrPath, locate
from litefs.errors import LiteFSError, PositionMismatch

HALT_SECONDS = 30.0
"""How long getting, renewing or giving up a HALT lock may take, beyond ANSWER_SECONDS."""

LOCK_SECONDS = 30.0
"""How long a HALT lock lasts from its last renewal."""

RENEW_SECONDS = 5.0
"""Between two renewals of a HALT lock."""


class HaltLost(LiteFSError):
    """The HALT lock ended before it was given up: what was committed until then is safe, nothing after it."""


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
    request(place, "POST", url, HALT_SECONDS)
    stop, lost = threading.Event(), list[LiteFSError]()

    def renew() -> None:
        renewed = time.monotonic()
        while not stop.wait(RENEW_SECONDS):
            asked = time.monotonic()
            try:
                request(place, "POST", f"{url}&renew=1", HALT_SECONDS)
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
            request(place, "DELETE", url, HALT_SECONDS)
    if lost:
        raise HaltLost(f"{os.fspath(path)}: the HALT lock was lost: {lost[0]}")
