# The known bytes of one contiguous range of a WAL file: [base, base + known). They lie at mem + low, so that the
# front can be dropped without moving the rest.

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset

cdef struct Window:
    uint8_t* mem
    size_t room
    size_t low
    int64_t base
    int64_t known

cdef inline void window_begin(Window* w, int64_t base) noexcept nogil:
    """An empty window at `base`."""
    w.base = base
    w.known = 0
    w.low = 0

cdef inline int64_t window_end(const Window* w) noexcept nogil:
    return w.base + w.known

cdef inline uint8_t* window_at(Window* w, int64_t offset) noexcept nogil:
    return w.mem + w.low + (offset - w.base)

cdef inline int window_append(Window* w, const uint8_t* p, int64_t n) noexcept nogil:
    """`n` bytes more at the end, zeros if `p` is NULL; -1 without memory."""
    cdef size_t total, room
    cdef void* grown
    if n <= 0:
        return 0
    total = w.known + n
    if w.low + total > w.room:
        if w.low:
            memmove(w.mem, w.mem + w.low, w.known)
            w.low = 0
        if 2 * total > w.room:  # so that at least half of the room is filled before bytes move again
            room = max(2 * total, <size_t>8192)
            grown = realloc(w.mem, room)
            if grown == NULL:
                return -1
            w.mem = <uint8_t*>grown
            w.room = room
    if p == NULL:
        memset(w.mem + w.low + w.known, 0, n)
    else:
        memcpy(w.mem + w.low + w.known, p, n)
    w.known += n
    return 0

cdef inline void window_advance(Window* w, int64_t base) noexcept nogil:
    """Drop what lies before `base`."""
    cdef int64_t dropped
    if base > w.base:
        dropped = min(base - w.base, w.known)
        w.low += dropped
        w.known -= dropped
        w.base = base

cdef inline void window_hold(Window* w, int64_t limit) noexcept nogil:
    """Drop what is known beyond the first `limit` bytes, and room that is no longer needed at the front."""
    w.known = min(w.known, limit)
    if w.known + <int64_t>w.low > 2 * limit:
        memmove(w.mem, w.mem + w.low, w.known)
        w.low = 0

cdef inline void window_free(Window* w) noexcept nogil:
    free(w.mem)
    w.mem = NULL
    w.room = w.low = 0
    w.known = 0
