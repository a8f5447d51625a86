"""What a WAL cursor finds; imported by way of `walcursor`."""

class Transaction:
    """One committed transaction of a WAL. Immutable."""

    commit: int
    """Size of the database after it, pages."""
    first_frame: int
    last_frame: int
    """1-based in the WAL generation, both inclusive."""
    frame_pgnos: bytes
    """Native u32 page number of each frame, in frame order."""
    pgnos: bytes
    """Native u32, ascending, each page once; pages beyond ``commit`` and the lock page left out."""
    offsets: bytes
    """Native u64 file offset of the newest image of each page of ``pgnos``."""
    images: bytearray | None
    """Those images, contiguous in the order of ``pgnos``; None if they are no longer in memory: read the
    file at ``offsets``, and lay `WalCursor.pending` over it."""
