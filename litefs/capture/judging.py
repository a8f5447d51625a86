"""What a WAL file would hold after a write: the cursor's questions are answered from the file, and commits
that are not written to their end are kept out of it (I47 of ``docs/concurrency.md``).
"""

from __future__ import annotations

import os

from litefs._core.walcursor import NEED, WalCursor
from litefs.store import fileops


def judge(cursor: WalCursor, fd: int, offset: int, data: bytes, size: int) -> int:
    """Propose *data* at *offset* of the WAL behind *fd*, which has *size* bytes.

    Returns the commits beyond the tip; the proposal is then to be accepted or rejected. Raises OSError,
    ValueError as ``WalCursor.propose``.
    """
    commits = cursor.propose(offset, data, size)
    while commits == NEED:
        at, length = cursor.want()
        commits = cursor.supply(at, os.pread(fd, length, at))
    return commits


def spoil(cursor: WalCursor, fd: int, offset: int, data: bytes, size: int) -> int:
    """A proposed write short of the end of a commit frame would complete it, with what the file holds behind
    it: see to it that the rest, which its client writes next, is what completes it.

    The rest may well be the same, and then nothing is lost. But pages of small numbers, as those of the free
    list, have the checksum of zeros in one case of 65,536: the log would get another page.

    Returns the commits that the write still completes; it is proposed again. Raises OSError, with no
    proposal.
    """
    commits = cursor.commits
    while commits and cursor.commit_end > offset + len(data):
        last = cursor.commit_end - 1
        cursor.reject()
        other = bytes([os.pread(fd, 1, last)[0] ^ 0xFF])
        # one word of a frame alone cannot leave its checksum as it is, so this completes nothing
        judge(cursor, fd, last, other, size)
        try:
            fileops.pwrite_all(fd, other, last)
        except OSError:
            cursor.reject()
            raise
        cursor.accept()
        commits = judge(cursor, fd, offset, data, size)
    return commits
