"""A replica gives its primary back what that lost to a power failure (litefs.takeback)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlencode

import trio

from litefs.cluster.peer import Peer
from litefs.errors import LogCorrupt, PositionMismatch
from litefs.store.paths import DataDir
from litefs.store.tails import copy_tail
from litefs.stream.protocols import Identity
from litefs.types import ZERO, Position

logger = logging.getLogger(__name__)

SEND_SECONDS = 60.0
"""How long one database's tail may take to be sent. Each checkpoint syncs the log, so it is seldom big."""


async def give_back(
    data: DataDir,
    identity: Callable[[], Identity],
    peer: Peer,
    after: Mapping[str, Position],
    held: Mapping[str, Position],
) -> None:
    """Send the primary what this node, at ``held``, has after ``after``, where its databases are.

    A database of which this node does not know that position, or has no more, is passed over. Raises
    PeerError, Refused.
    """
    for name, position in after.items():
        upto = held.get(name, ZERO).txid
        if upto <= position.txid:
            continue
        with tempfile.TemporaryFile(dir=data.path, prefix="tail-") as file:
            log = data.database_dir(name).log
            try:
                found = await trio.to_thread.run_sync(copy_tail, log, position, upto, file)
            except (LogCorrupt, PositionMismatch, OSError) as error:
                logger.warning("%s: cannot give the primary its tail back: %s", name, error)
                continue
            if not found:
                logger.warning("%s: the primary is at %s, which is not in our log", name, position)
                continue
            query = urlencode({"name": name, "after": str(position)})
            body = Path(f"/proc/self/fd/{file.fileno()}")
            await peer.ask("POST", f"/tail?{query}", identity(), body=body, seconds=SEND_SECONDS)
        logger.info("%s: gave the primary %d transactions back", name, upto - position.txid)
