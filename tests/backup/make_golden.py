"""Writes an archive like tests/backup/golden/ours: python -m tests.backup.make_golden DIR."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

from litefs.backup.directory import DirectoryTarget
from tests.support.archived import Archived
from tests.support.histories import History

CHANGE = 30
LAST = 34


def history() -> History:
    """The same whenever it is called, but for the blocks of another LZ4."""
    made = History(20, max_pages=6)
    made.add(CHANGE - 1, 400)
    made.resize(1024)
    made.add(LAST - CHANGE, 400)
    return made


def write(root: Path, scratch: Path) -> None:
    """Bundles of 1, 8, 9 and more transactions, a big one, a change of the page size; levels 0 to 2 and 9."""
    made = Archived(DirectoryTarget(root), "", history(), scratch)
    for count in (1, 8, 9, 3):
        made.store(count, big=False)
    made.store(1, big=True)
    made.compact(1, 1 << 50)
    made.store(3, big=False)
    made.compact(1, 1 << 50)
    made.store(LAST, big=False)
    made.compact(2, 1 << 50)
    made.store(3, big=False)
    made.store(LAST, big=False)
    made.compact(1, 1 << 50)
    assert made.done == LAST
    hashes = {f"{step.point.txid:x}": sha256(step.image).hexdigest() for step in made.history.steps}
    (root / "restored.json").write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]).absolute(), Path("/tmp"))
