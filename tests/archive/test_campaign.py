"""Everything at once that may happen to an archive: then any moment is restored, byte for byte as it was.

Two candidates archive into a directory, and into an S3 server, while clients write databases of every mode;
the primary is killed, hands over, dies with transactions that nobody else has; the store fills up, drops
requests, refuses them, is slow, and loses answers. ``LITEFS_SEED`` repeats a schedule; ``LITEFS_SOAK`` makes
it 10,000 transactions and 200 moments. The real Litestream restores some of them where there is one
(tests/support/litestream.py).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.backup.targets import open_target
from litefs.errors import NotRestorable
from litefs.types import Point
from tests.archive import goals
from tests.archive.campaign import Campaign
from tests.archive.load import KINDS
from tests.archive.stores import store
from tests.support.elected import lease_settings
from tests.support.litestream import litestream_binary
from tests.support.node import Node
from tests.support.processes import Client

SOAK = "LITEFS_SOAK" in os.environ
TRANSACTIONS = 10_000 if SOAK else 300
STRIKES = 40 if SOAK else 5
MOMENTS = 200 if SOAK else 20
COPIES = 10 if SOAK else 2
COMMANDS = 10 if SOAK else 1
"""Moments of each database that the command restores, and Litestream; the others go through the API."""
SECONDS = 3600.0 if SOAK else 60.0


@pytest.mark.parametrize(("kind", "lease"), [("directory", "directory"), ("s3", "consul")])
def test_any_moment_is_restored(
    kind: str,
    lease: str,
    tmp_path: Path,
    make_node: Callable[..., Node],
    make_client: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    began = time.monotonic()
    with store(kind, tmp_path) as place, lease_settings(lease, tmp_path) as settings:
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        target = open_target(place.url)
        # Files are merged, and snapshots made, while it goes on.
        often = {"levels": ["1s", "4s"], "snapshot": {"interval": "10s"}}
        campaign = Campaign(tmp_path, place, target, settings, make_node, make_client, rng, **often)
        with campaign.running():
            strikes = campaign.strikes(STRIKES)
            for number, strike in enumerate(strikes):
                campaign.await_transactions((number + 1) * TRANSACTIONS // (STRIKES + 1), SECONDS)
                campaign.strike(strike)
                if number % (STRIKES // COPIES) == 0:
                    campaign.copy()
            campaign.await_transactions(TRANSACTIONS, SECONDS)
            tips = campaign.quiet()
            print(
                f"{campaign.acknowledged} transactions, {dict(campaign.counts)}, {campaign.watch.looks} looks"
            )
            quiet = time.monotonic()
            judge(campaign, tips, rng, tmp_path)
            assert campaign.watch.broken == []
    print(f"{quiet - began:.1f} s to write and fail, {time.monotonic() - quiet:.1f} s to judge")


def judge(campaign: Campaign, tips: dict[str, Point], rng: random.Random, root: Path) -> None:
    """Hold the archive, and what is restored of it, to the truth."""
    out, source = root / "restored.db", campaign.store.url
    counts = Counter[str]()
    for name in (kind.name for kind in KINDS):
        truth = campaign.truths[name]
        found, lost = campaign.judge(name, tips[name])
        counts["given up"] += lost
        copies(campaign, name, tips[name])
        wanted = list(goals.draw(rng, name, found, MOMENTS // len(KINDS)))
        for timeline in found:
            number, tip = timeline.archive.number, timeline.tip
            mine = [one for one in wanted if one.timeline == number]
            counts["api"] += goals.compare(truth, tip, mine, lambda *of: goals.ours(source, *of), out)
            some = rng.sample(mine, min(COMMANDS, len(mine)))
            counts["command"] += goals.compare(truth, tip, some, lambda *of: goals.command(source, *of), out)
            if litestream_binary() and timeline.entries:
                times = source.startswith("file:")
                some = goals.litestream_moments(rng, timeline, COMMANDS + 1, times=times)
                url = goals.litestream_url(source, timeline.archive.prefix)
                counts["litestream"] += goals.compare(
                    truth, tip, some, lambda *of, url=url: goals.litestream(url, *of), out
                )
        beyond = goals.Wanted(name, found[-1].archive.number, Point(tips[name].txid + 1, 1 << 63, 1))
        with pytest.raises(NotRestorable, match=f"{tips[name].txid:016x}"):
            goals.ours(source, beyond, out)
        assert not out.exists()
    assert counts["given up"] or not campaign.counts["diverge"], "no tail of a dead primary was archived"
    print(f"restored and compared: {dict(counts)}")


def copies(campaign: Campaign, name: str, tip: Point) -> None:
    """What was copied out of the database then is what its log says: the truth is one."""
    taken = {copy.point: copy for copy in campaign.copies if copy.name == name}
    for record, image in campaign.truths[name].images(tip):
        copy = taken.pop(record.point, None)
        assert copy is None or copy.is_of(image.content), f"{name}: the copy at {record.point} differs"
    # What is left is of histories that were given up later.
    assert len(taken) < max(2, len(campaign.copies))
