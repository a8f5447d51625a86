"""The list of unused pages (https://sqlite.org/fileformat2.html, section 1.5).

SQLite may overwrite a *leaf* of it without a copy in the rollback journal, since nobody reads its content:
after a rollback such a page may hold anything.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_FIRST_TRUNK = struct.Struct(">I")
_FIRST_TRUNK_AT = 32
_TRUNK = struct.Struct(">II")


def free_leaves(read_page: Callable[[int], bytes], page_count: int) -> set[int]:
    """Page numbers of the leaves, as far as the list can be followed.

    ``read_page(pgno)`` gives a whole page of a database of ``page_count`` pages. The trunk pages, which hold
    the list, are not among them. Stops at the first number that cannot be right, or was met before.
    """
    leaves: set[int] = set()
    trunks: set[int] = set()
    (trunk,) = _FIRST_TRUNK.unpack_from(read_page(1), _FIRST_TRUNK_AT)
    while 1 < trunk <= page_count and trunk not in trunks:
        trunks.add(trunk)
        page = read_page(trunk)
        following, count = _TRUNK.unpack_from(page)
        if count > len(page) // 4 - 2:
            break
        numbers = struct.unpack_from(f">{count}I", page, _TRUNK.size)
        if not all(1 < number <= page_count for number in numbers):
            break
        leaves.update(numbers)
        trunk = following
    return leaves - trunks
