"""A node that takes part in elections and commits whenever it may: ``URL DIRECTORY NAME TERM RENEW MARGIN``.

SIGTERM: leave the role and end. SIGUSR1: hand off.
"""

from __future__ import annotations

import logging
import secrets
import signal
import sys
from pathlib import Path

import trio

from litefs.cluster.election import Election
from litefs.cluster.lease import PrimaryInfo, Timing
from litefs.errors import LiteFSError
from tests.support.leases import open_lease
from tests.support.members import SmallMember

COMMIT_SECONDS = 0.005


async def main(url: str, directory: str, name: str, term: str, renew: str, margin: str) -> None:
    timing = Timing(float(term), float(renew), float(margin))
    member = SmallMember(Path(directory), name, secrets.randbits(64))
    lease = open_lease(url, "key", timing)
    info = PrimaryInfo(name, f"http://{name}")
    election = Election(lease, member, member.node_id, info, candidate=True)
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
            await nursery.start(election.run)
            nursery.start_soon(member.replicate)
            nursery.start_soon(member.write, COMMIT_SECONDS)
            election.mounted()
            async for number in signals:
                if number == signal.SIGTERM:
                    break
                try:
                    await election.handoff()
                except LiteFSError as error:
                    logging.info("handoff: %s", error)
        await election.stop()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trio.run(main, *sys.argv[1:])
