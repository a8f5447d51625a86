from typing_extensions import Buffer

class BlockError(ValueError):
    """Bytes that are not a valid record or page frame."""

    offset: int
    """Where, in bytes from the start of the file (or of the argument)."""
    is_checksum: bool
    """Everything has the right shape, only the file checksum is wrong."""

def encode_record(header: Buffer, pgnos: Buffer, images: Buffer, post: int) -> bytes:
    """A whole record from its 100-byte header, page numbers (native u32, ascending), contiguous images and post-apply
    checksum.

    Page size, database size and first TXID are taken from the header. Raises ValueError if the numbers do not ascend,
    exceed the database size, contain the lock page, do not fit the images, or are not all pages where the first
    TXID is 1.
    """

def encode_pages(
    pgnos: Buffer, images: Buffer, page_size: int, base_offset: int, crc: int
) -> tuple[bytes, bytes, int]:
    """Some page frames, their index entries, and the running file CRC after them.

    ``base_offset``: where in the file the frames will be. Raises ValueError as ``encode_record``.
    """

def decode_record(record: Buffer, verify: bool = True) -> tuple[bytes, bytearray, int, int]:
    """(page numbers as native u32, images, post-apply checksum, file checksum) of a whole record.

    Of the header only page size, database size and first TXID are looked at. ``verify`` False leaves out the file
    checksum, nothing else. Raises BlockError, or ValueError for the page size.
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
    """Decode up to ``max_pages`` whole frames from ``data[start:]``, whose first byte is at ``offset`` in the file.

    ``last_pgno``: the page before; ``full``: every page up to ``commit`` must come. Returns page numbers, images, the
    index entries that these pages must have, bytes used, running CRC, and whether the end mark is next (not used up).
    No page and not ended: a frame is incomplete. Raises BlockError, or ValueError for bad arguments.
    """

def decode_page(data: Buffer, page_size: int) -> tuple[int, bytes]:
    """(page number, page) of exactly one frame. Raises BlockError; its offset counts from the frame's start."""

def parse_index(data: Buffer, offset: int = 0) -> list[tuple[int, int, int]]:
    """(pgno, offset, size) per page, of a page index up to and with its terminating 0, without the length.

    ``offset``: where the index is in the file, for errors. Raises BlockError.
    """
