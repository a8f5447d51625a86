"""WAL frames and their checksum; imported by way of `walcursor`."""

from typing_extensions import Buffer

def wal_checksum(data: Buffer, c1: int, c2: int, big_endian: bool) -> tuple[int, int]:
    """SQLite's WAL checksum of ``data``, continued from ``(c1, c2)`` (start of a WAL: 0, 0).

    ``big_endian``: the words of the data are read big-endian (WAL magic 0x377f0683).
    Raises ValueError if the length is not a multiple of 8.
    """

def build_frames(
    pgnos: Buffer,
    images: Buffer,
    page_size: int,
    salt1: int,
    salt2: int,
    c1: int,
    c2: int,
    commit: int,
    big_endian: bool,
) -> tuple[bytes, int, int]:
    """WAL frames for one transaction, to be appended after a frame whose checksum is ``(c1, c2)``.

    ``pgnos``: native u32 in frame order; ``images``: ``len(pgnos) * page_size`` bytes in that order;
    ``commit``: database size in pages, written to the last frame only (0: to none).
    Returns the frames (24 + page_size bytes each) and the checksum after them.
    Raises ValueError for a bad page size, a zero page number or lengths that do not match.
    """
