from typing_extensions import Buffer

class BlockError(ValueError):
    """Bytes that are not a valid record or page frame."""

    offset: int
    """Where, in bytes from the start of the file (or of the argument)."""
    is_checksum: bool
    """Everything has the right shape, only the file checksum is wrong."""

def decode_record(record: Buffer, verify: bool = True) -> tuple[bytes, bytearray, int, int]:
    """(page numbers as native u32, images, post-apply checksum, file checksum) of a whole record.

    Of the header only page size, database size and first TXID are looked at. ``verify`` False leaves out the
    file checksum, nothing else. Raises BlockError, or ValueError for the page size.
    """

def decode_pages(
    data: Buffer,
    start: int,
    offset: int,
    page_size: int,
    commit: int,
    last_pgno: int,
    full: bool,
    max_pages: int,
    crc: int,
    verify: bool = True,
) -> tuple[bytes, bytearray, bytes, int, int, bool]:
    """Decode up to ``max_pages`` whole frames from ``data[start:]``, which lies at ``offset`` in the file.

    ``last_pgno``: the page before; ``full``: every page up to ``commit`` must come. Returns page numbers,
    images, the index entries that these pages must have, bytes used, running CRC, and whether the end mark is
    next (not used up). No page and not ended: a frame is incomplete. Raises BlockError, or ValueError for bad
    arguments.
    """

def decode_page(data: Buffer, page_size: int) -> tuple[int, bytes]:
    """(page number, page) of exactly one frame.

    Raises BlockError; its offset counts from the frame's start.
    """

def parse_index(data: Buffer, offset: int = 0) -> list[tuple[int, int, int]]:
    """(pgno, offset, size) per page, of a page index up to and with its terminating 0, without the length.

    ``offset``: where the index is in the file, for errors. Raises BlockError.
    """
