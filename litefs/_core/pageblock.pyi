from typing_extensions import Buffer

def encode_record(header: Buffer, pgnos: Buffer, images: Buffer, post: int) -> bytes:
    """A whole record from its 100-byte header, its pages and the post-apply checksum.

    ``pgnos``: native u32, ascending; ``images``: as many pages, contiguous. Page size, database size and
    first TXID are taken from the header. Raises ValueError if the numbers do not ascend, exceed the database
    size, contain the lock page, do not fit the images, or are not all pages where the first TXID is 1.
    """

def encode_pages(
    pgnos: Buffer, images: Buffer, page_size: int, base_offset: int, crc: int
) -> tuple[bytes, bytes, int]:
    """Some page frames, their index entries, and the running file CRC after them.

    ``base_offset``: where in the file the frames will be. Raises ValueError as ``encode_record``.
    """
