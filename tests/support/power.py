"""A machine that loses its power, as far as a node can tell: what its disk lacks, and another boot."""

from __future__ import annotations

from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.segments import SegmentMap, list_segments
from litefs.store.sums import SumsFile
from tests.support.node import Node

OTHER_BOOT = "00000000-0000-4000-8000-000000000000\n"


def note_other_boot(node: Node) -> None:
    """The node, which is down, streamed in another boot of its machine than this one."""
    (node.data / "streamed").write_text(OTHER_BOOT)


def lose_power(node: Node, *names: str) -> dict[str, int]:
    """Kill a primary, and leave of its logs what was synced; returns how many transactions of each were not.

    Checksums and database are left as they are: the disk may have had them.
    """
    node.kill("both")
    assert (node.data / "streamed").exists(), "the node did not note that it streamed"
    note_other_boot(node)
    return {name: _forget_unsynced(DataDir(node.data).database_dir(name)) for name in names}


def _forget_unsynced(directory: DatabaseDir) -> int:
    sums = SumsFile(directory.sums)
    synced = sums.sums.synced_txid
    sums.close()
    directory.wal.unlink(missing_ok=True)
    directory.shm.unlink(missing_ok=True)
    _, path = list_segments(directory.log)[-1]  # those before it were synced when it began
    with SegmentMap(path) as segment:
        lost = [extent for extent in segment.extents(verify=True) if extent.txid_max > synced]
        size = segment.size
    if lost:
        with path.open("r+b") as file:
            file.seek(lost[0].offset)
            file.write(bytes(size - lost[0].offset))
    return len(lost)
