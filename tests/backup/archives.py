"""What an archive holds, read in the simplest way there is: for tests."""

from __future__ import annotations

from collections.abc import Iterator

from litefs.backup.archive import Archive, Start, timelines
from litefs.backup.bundle import Bundle
from litefs.backup.target import Target
from litefs.ltx import decode
from litefs.types import START


def image_after(image: bytes, record: bytes) -> bytes:
    """A database's bytes with a record over them."""
    found = decode(record)
    header, size = found.header, found.header.page_size
    pages = bytearray(image.ljust(header.commit * size, b"\0")[: header.commit * size])
    for number, pgno in enumerate(memoryview(found.pgnos).cast("I")):
        pages[(pgno - 1) * size : pgno * size] = found.images[number * size : (number + 1) * size]
    return bytes(pages)


def body_of(archive: Archive, bundle: Bundle) -> list[bytes]:
    """The records of a bundle, also of a big one."""
    if not bundle.big:
        return archive.records(bundle)
    reader = archive.open_big(bundle.last)
    try:
        body = b"".join(iter(lambda: reader.read(1 << 20), b""))
    finally:
        reader.close()
    bundle.check(bundle.entries[0], body)
    return [body]


def snapshot(archive: Archive, txid: int) -> bytes:
    """The database of the snapshot that ends with ``txid``."""
    (file,) = [file for file in archive.files(9) if file.max_txid == txid]
    return image_after(b"", archive.target.read(file.key))


def by_bundles(archive: Archive, start: Start) -> Iterator[tuple[int, bytes]]:
    """(TXID, database after it) of every transaction of a timeline, by its bundles."""
    image = b"" if start.point == START else snapshot(archive, start.point.txid)
    times = [0]
    for bundle in archive.bundles(start.point.txid + 1):
        for entry, body in zip(
            bundle.entries, body_of(archive, bundle) if bundle.entries else [], strict=True
        ):
            image = image_after(image, body)
            times.append(entry.time)
            yield entry.txid, image
    assert times == sorted(times)


def by_files(archive: Archive) -> tuple[int, bytes]:
    """(TXID, database) that Litestream's files lead to: the newest snapshot, then level 0 alone."""
    snapshots = archive.files(9)
    newest = max(snapshots, key=lambda file: file.max_txid) if snapshots else None
    txid, image = (newest.max_txid, snapshot(archive, newest.max_txid)) if newest is not None else (0, b"")
    for file in archive.files(0):
        if file.max_txid <= txid:
            continue
        assert file.min_txid == txid + 1, f"level 0 has nothing between {txid:x} and {file.min_txid:x}"
        image = image_after(image, archive.target.read(file.key))
        txid = file.max_txid
    return txid, image


def check_whole(target: Target, name: str, images: list[bytes]) -> list[int]:
    """Hold the newest timeline that was begun to ``images`` (of TXID 1 on): every transaction's bytes, and
    the files' last; returns the TXIDs that it holds."""
    archive, start = next((a, s) for a in reversed(timelines(target, name)) if (s := a.start()) is not None)
    found = []
    for txid, image in by_bundles(archive, start):
        assert image == images[txid - 1], f"TXID {txid:x} is another database"
        found.append(txid)
    assert found == list(range(start.point.txid + 1, start.point.txid + 1 + len(found)))
    if found:
        assert by_files(archive) == (found[-1], images[found[-1] - 1])
    return found
