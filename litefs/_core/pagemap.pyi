from typing_extensions import Buffer

def lay_index(
    index: Buffer, offset: int, offsets: Buffer, sizes: Buffer, pieces: Buffer, piece: int, limit: int
) -> int:
    """Note where a file's page frames lie, for those pages up to ``limit`` of which nothing is noted yet.

    ``index``: up to and with its terminating 0, at ``offset`` in the file. By page number - 1: ``offsets``
    (native u64) of frames in the file, ``sizes`` (u32; 0: nothing noted), ``pieces`` (u32), which become
    ``piece``. Returns how many pages were noted. Raises pagedecode.BlockError if the index is damaged (what
    lies before the damage is noted then), ValueError if an array is shorter than ``limit``.
    """
