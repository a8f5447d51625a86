# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: extra_compile_args = -O3
"""The WAL cursor; walcursor.pyi documents the interface.

It keeps two things about the file beyond the logged tip:

* the *chain*: one entry per frame that is valid (salts, page number, checksum continued from the frame before),
  up to the first that is not;
* the *window*: the known bytes of one contiguous range ``[base, base + known)`` of the file, as it would be with
  the proposed write. ``base`` is the start of a frame. Bytes outside it are in the file, and are asked for.

``judged`` means that the frame after the chain is known not to continue it; a write behind that frame then
changes nothing and costs nothing. A write into the chain cuts it, and what was cut is kept for `reject`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from litefs._core.walframes cimport View, is_page_size, wal_sum
from litefs._core.waltransaction cimport Frame, make_transaction
from litefs._core.walwindow cimport (
    Window, window_advance, window_append, window_at, window_begin, window_end, window_free, window_hold,
)

from litefs._core.loggedframes import LoggedFrames
from litefs._core.walframes import build_frames, wal_checksum
from litefs._core.waltransaction import Transaction

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint32_t be32(const uint8_t *p) {
        uint32_t v;
        memcpy(&v, p, 4);
        return __builtin_bswap32(v);
    }
    """
    uint32_t be32(const uint8_t* p) nogil

NEED = -1

cdef enum:
    WANT = -1  # NEED, for C
    NO_MEMORY = -2
    WAL_HEADER = 32
    FRAME_HEADER = 24
    READ_AHEAD = 65536  # bytes asked for at once: one read serves the next frames too
    GIL_BYTES = 16384  # less work than this is done with the GIL held: dropping it costs more
    IDLE_MEMORY = 1 << 18  # a buffer larger than this is given back when it is empty

cdef struct State:  # what `reject` puts back as it is
    int64_t valid
    int64_t commits
    bint judged
    bint at_end  # judged because the file ends within the frame after the chain
    int64_t summed  # bytes of that frame's page whose sum is in sum1, sum2
    uint32_t sum1
    uint32_t sum2


cdef class WalCursor:
    cdef int64_t limit
    # The generation.
    cdef readonly bint active, big_endian
    cdef readonly uint32_t page_size, salt1, salt2
    cdef uint8_t[8] salts
    cdef int64_t frame_size
    # The tip.
    cdef readonly int64_t logged_frames, tip_offset
    cdef uint32_t c1, c2
    # The chain.
    cdef Frame* chain
    cdef size_t chain_room
    cdef State now
    cdef Window window
    # The proposal.
    cdef bint proposed, advanced
    cdef Py_buffer view
    cdef const uint8_t* data
    cdef int64_t start, end, file_size, file_end, want_offset, want_length
    # How to take it back.
    cdef State before
    cdef Frame* cut
    cdef size_t cut_room
    cdef int64_t cut_from, cut_count, known_before, over_length
    cdef uint8_t* over  # what the proposal overwrote in the window
    cdef size_t over_room
    cdef bint window_lost

    def __init__(self, int64_t buffer_limit=8 << 20):
        if buffer_limit < 0:
            raise ValueError(f"buffer limit {buffer_limit}")
        self.limit = buffer_limit
        self.deactivate()

    def __dealloc__(self):
        if self.proposed:
            PyBuffer_Release(&self.view)
        free(self.chain)
        window_free(&self.window)
        free(self.cut)
        free(self.over)

    @property
    def valid_frames(self):
        return self.now.valid

    @property
    def commits(self):
        return self.now.commits

    @property
    def commit_end(self):
        cdef int64_t n = self.now.valid
        while n and self.chain[n - 1].commit == 0:
            n -= 1
        return self.frame_offset(n)

    @property
    def checksum(self):
        return self.c1, self.c2

    @property
    def buffered(self):
        return self.window.known

    def reset(self, header):
        cdef View view = View(header)
        cdef const uint8_t* p = view.p
        if view.n != WAL_HEADER:
            raise ValueError(f"WAL header of {view.n} bytes")
        cdef uint32_t magic = be32(p), page_size = be32(p + 8), c1 = 0, c2 = 0
        if magic & ~<uint32_t>1 != 0x377f0682 or be32(p + 4) != 3007000 or not is_page_size(page_size):
            raise ValueError("WAL header: wrong magic number, version or page size")
        wal_sum(p, 24, magic & 1, &c1, &c2)
        if be32(p + 24) != c1 or be32(p + 28) != c2:
            raise ValueError("WAL header: wrong checksum")
        self.deactivate()
        self.active = True
        self.big_endian = magic & 1
        self.page_size = page_size
        self.frame_size = FRAME_HEADER + <int64_t>page_size
        memcpy(self.salts, p + 16, 8)
        self.salt1 = be32(p + 16)
        self.salt2 = be32(p + 20)
        self.c1 = c1
        self.c2 = c2

    def deactivate(self):
        self.settle()
        self.active = False
        self.page_size = self.salt1 = self.salt2 = self.c1 = self.c2 = 0
        self.big_endian = False
        self.logged_frames = 0
        self.tip_offset = WAL_HEADER
        self.forget()
        self.shed()

    def propose(self, int64_t offset, data, int64_t file_size):
        cdef int64_t first
        if not self.active or self.proposed or offset < self.tip_offset or file_size < 0:
            raise ValueError(f"cannot propose a write at {offset}: tip {self.tip_offset}, "
                             f"active {self.active}, pending {self.proposed}")
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.proposed = True
        self.advanced = self.window_lost = False
        self.data = <const uint8_t*>self.view.buf
        self.start = offset
        self.end = offset + self.view.len
        if file_size < max(window_end(&self.window), self.frame_offset(self.now.valid)):
            self.shrink(file_size)
        self.file_size = file_size
        self.file_end = max(file_size, self.end) if self.view.len else file_size
        self.before = self.now
        self.known_before = self.window.known
        self.cut_count = self.over_length = 0
        first = (offset - self.tip_offset) // self.frame_size if self.view.len else self.now.valid
        if first < self.now.valid and self.cut_chain(first) < 0:
            self.reject()
            raise MemoryError
        if first <= self.now.valid:
            self.now.judged = False
            if offset < self.frame_offset(self.now.valid) + FRAME_HEADER + self.now.summed:
                self.now.summed = 0
        elif self.now.at_end and self.file_end >= self.frame_offset(self.now.valid + 1):
            self.now.judged = False  # a hole in the file now completes the frame after the chain
        if self.view.len and self.lay(first) < 0:
            self.reject()
            raise MemoryError
        if self.now.judged:
            return self.now.commits
        return self.answer()

    def want(self):
        if self.want_length == 0:
            raise ValueError("no bytes are wanted")
        return self.want_offset, self.want_length

    def supply(self, int64_t offset, data):
        cdef View view = View(data)
        cdef int64_t n = view.n
        if self.want_length == 0 or offset != self.want_offset or n > self.want_length:
            raise ValueError(f"{n} bytes at {offset} supplied, {self.want_length} at {self.want_offset} wanted")
        if n < self.want_length:
            self.file_size = offset + n
            self.file_end = max(self.file_size, self.end) if self.view.len else self.file_size
        self.want_length = 0
        if window_append(&self.window, view.p, n) < 0:
            raise MemoryError
        return self.answer()

    def accept(self):
        if not self.proposed or self.want_length:
            raise ValueError("no judged proposal to accept")
        self.settle()
        if self.window.known > self.limit:
            self.trim()

    def reject(self):
        if not self.proposed:
            raise ValueError("no proposal to reject")
        if self.advanced:
            self.forget()
        else:
            if self.cut_count:
                memcpy(self.chain + self.cut_from, self.cut, self.cut_count * sizeof(Frame))
            self.now = self.before
            if self.window_lost:
                window_begin(&self.window, self.frame_offset(self.now.valid))
            else:
                self.window.known = self.known_before
                if self.over_length:
                    memcpy(window_at(&self.window, self.start), self.over, self.over_length)
        self.settle()

    def pending(self):
        return (self.start, self.view_object()) if self.proposed else None

    def take(self):
        if self.want_length:
            raise ValueError("bytes are wanted before the chain is known")
        if self.now.commits == 0:
            return None
        cdef int64_t n = 1
        cdef const uint8_t* data = NULL  # the whole of it in memory
        while self.chain[n - 1].commit == 0:
            n += 1
        if self.window.base == self.tip_offset and self.window.known >= n * self.frame_size:
            data = window_at(&self.window, self.tip_offset)
        return make_transaction(self.chain, n, self.logged_frames, self.tip_offset, self.page_size, data)

    def advance(self, int64_t last_frame):
        cdef int64_t n = last_frame - self.logged_frames, i
        if self.want_length or not 1 <= n <= self.now.valid:
            raise ValueError(f"frame {last_frame} is not in the valid chain: {self.logged_frames} logged, "
                             f"{self.now.valid} valid beyond")
        self.c1 = self.chain[n - 1].c1
        self.c2 = self.chain[n - 1].c2
        for i in range(n):
            self.now.commits -= self.chain[i].commit != 0
        self.now.valid -= n
        memmove(self.chain, self.chain + n, self.now.valid * sizeof(Frame))
        self.logged_frames = last_frame
        self.tip_offset += n * self.frame_size
        self.advanced = True
        window_advance(&self.window, self.tip_offset)
        self.shed()

    # --- no Python below, except where an object is made

    cdef object view_object(self):
        return <object>self.view.obj

    cdef inline int64_t frame_offset(self, int64_t k) noexcept nogil:
        return self.tip_offset + k * self.frame_size

    cdef void settle(self) noexcept:
        """The proposal is over."""
        if self.proposed:
            PyBuffer_Release(&self.view)
        self.proposed = False
        self.want_length = self.cut_count = self.over_length = 0

    cdef void forget(self) noexcept:
        """Nothing is known beyond the tip."""
        memset(&self.now, 0, sizeof(State))
        window_begin(&self.window, self.tip_offset)

    cdef void shed(self) noexcept:
        """Give large empty buffers back."""
        if self.window.known == 0:
            self.window.low = 0
            if self.window.room > IDLE_MEMORY:
                window_free(&self.window)
        if self.now.valid == 0 and self.chain_room * sizeof(Frame) > IDLE_MEMORY:
            free(self.chain)
            self.chain = NULL
            self.chain_room = 0
        if not self.proposed and self.over_room > IDLE_MEMORY:
            free(self.over)
            self.over = NULL
            self.over_room = 0

    cdef void trim(self) noexcept:
        """Hold the window to the limit: first without the frames of the chain, then without its end."""
        cdef int64_t chained = self.frame_offset(self.now.valid) - self.window.base
        if self.window.known // 2 <= chained <= self.window.known:  # else moving the rest costs more than it frees
            window_advance(&self.window, self.window.base + chained)
        window_hold(&self.window, self.limit)
        self.shed()

    cdef void shrink(self, int64_t file_size) noexcept:
        """The file was cut: so are the window and the chain."""
        cdef int64_t whole = max(0, file_size - self.tip_offset) // self.frame_size
        self.window.known = min(self.window.known, max(0, file_size - self.window.base))
        while self.now.valid > whole:
            self.now.valid -= 1
            self.now.commits -= self.chain[self.now.valid].commit != 0
        self.now.judged = False
        self.now.summed = 0

    cdef int cut_chain(self, int64_t k) noexcept:
        """The frame `k` changes: it and those after it leave the chain."""
        cdef size_t n = self.now.valid - k
        cdef void* grown
        if n > self.cut_room:
            grown = realloc(self.cut, n * sizeof(Frame))
            if grown == NULL:
                return NO_MEMORY
            self.cut = <Frame*>grown
            self.cut_room = n
        memcpy(self.cut, self.chain + k, n * sizeof(Frame))
        self.cut_from = k
        self.cut_count = n
        while self.now.valid > k:
            self.now.valid -= 1
            self.now.commits -= self.chain[self.now.valid].commit != 0
        self.now.summed = 0
        return 0

    cdef int lay(self, int64_t first) noexcept:
        """Put the proposed bytes into the window, as far as they touch it."""
        cdef int64_t n
        cdef void* grown
        if self.start < self.window.base:  # bytes that were dropped: a new window, from the frame that is written
            window_begin(&self.window, self.frame_offset(first))
            self.window_lost = True
        if self.start > window_end(&self.window):
            return 0
        n = min(self.end, window_end(&self.window)) - self.start
        if n > 0:
            if <size_t>n > self.over_room:
                grown = realloc(self.over, n)
                if grown == NULL:
                    return NO_MEMORY
                self.over = <uint8_t*>grown
                self.over_room = n
            memcpy(self.over, window_at(&self.window, self.start), n)
            self.over_length = n
            memcpy(window_at(&self.window, self.start), self.data, n)
        return window_append(&self.window, self.data + n, self.end - self.start - n)

    cdef int fill(self, int64_t target) noexcept nogil:
        """Know the bytes up to `target` <= file_end: from the proposal, the file, or the hole between them."""
        cdef int64_t at, stop
        while window_end(&self.window) < target:
            at = window_end(&self.window)
            if self.start <= at < self.end:
                if window_append(&self.window, self.data + (at - self.start), self.end - at) < 0:
                    return NO_MEMORY
                continue
            if at < self.file_size:
                stop = min(self.file_size, max(target, at + READ_AHEAD))
                if at < self.start < self.end:
                    stop = min(stop, self.start)
                self.want_offset = at
                self.want_length = stop - at
                return WANT
            if window_append(&self.window, NULL, min(self.start, target) - at) < 0:
                return NO_MEMORY
        return 0

    cdef object answer(self):
        cdef int result
        if self.end - self.start > GIL_BYTES or self.cut_count > 4:
            with nogil:
                result = self.judge()
        else:
            result = self.judge()
        if result == NO_MEMORY:
            raise MemoryError
        return NEED if result == WANT else self.now.commits

    cdef int judge(self) noexcept nogil:
        """Continue the chain over the file as it would be."""
        cdef const uint8_t* frame
        cdef int64_t offset, end
        cdef int result
        while True:
            offset = self.frame_offset(self.now.valid)
            end = offset + self.frame_size
            self.now.at_end = end > self.file_end
            if self.now.at_end:
                break
            if not self.window.base <= offset <= window_end(&self.window):
                window_begin(&self.window, offset)
                self.window_lost = True
            result = self.fill(offset + FRAME_HEADER)
            if result < 0:
                return result
            frame = window_at(&self.window, offset)
            if memcmp(frame + 8, self.salts, 8) != 0 or be32(frame) == 0:
                break
            result = self.fill(end)
            if result < 0:
                return result
            result = self.link(offset)
            if result < 0:
                return result
            if result == 0:
                break
            if self.cut_count and self.rejoin():
                break
        self.now.judged = True
        return 0

    cdef int link(self, int64_t offset) noexcept nogil:
        """Add the frame at `offset`, whose bytes are known, to the chain; 0 if its checksum is wrong."""
        cdef uint32_t a, b
        cdef int64_t mark
        cdef size_t room
        cdef void* grown
        cdef const uint8_t* frame = window_at(&self.window, offset)
        cdef const uint8_t* page = frame + FRAME_HEADER
        cdef Frame* entry
        if self.now.summed:
            a = self.now.sum1
            b = self.now.sum2
        else:
            a = self.chain[self.now.valid - 1].c1 if self.now.valid else self.c1
            b = self.chain[self.now.valid - 1].c2 if self.now.valid else self.c2
            wal_sum(frame, 8, self.big_endian, &a, &b)
        # The next piece is likely to follow this one: remember the sum up to there.
        mark = (self.end - offset - FRAME_HEADER) & ~<int64_t>7
        if self.now.summed < mark < <int64_t>self.page_size:
            wal_sum(page + self.now.summed, mark - self.now.summed, self.big_endian, &a, &b)
            self.now.summed = mark
            self.now.sum1 = a
            self.now.sum2 = b
        wal_sum(page + self.now.summed, self.page_size - self.now.summed, self.big_endian, &a, &b)
        if be32(frame + 16) != a or be32(frame + 20) != b:
            return 0
        if <size_t>self.now.valid == self.chain_room:
            room = max(2 * self.chain_room, <size_t>64)
            grown = realloc(self.chain, room * sizeof(Frame))
            if grown == NULL:
                return NO_MEMORY
            self.chain = <Frame*>grown
            self.chain_room = room
        entry = self.chain + self.now.valid
        entry.pgno = be32(frame)
        entry.commit = be32(frame + 4)
        entry.c1 = a
        entry.c2 = b
        self.now.valid += 1
        self.now.commits += entry.commit != 0
        self.now.summed = 0
        return 1

    cdef bint rejoin(self) noexcept nogil:
        """If the last frame linked is behind the write and its sum is as before the cut, so is all after it.

        True if the chain then ends where it is known to end.
        """
        cdef int64_t last = self.now.valid - 1, i = last - self.cut_from, first
        if self.frame_offset(self.now.valid) < self.end or i >= self.cut_count:
            return False
        if self.cut[i].c1 != self.chain[last].c1 or self.cut[i].c2 != self.chain[last].c2:
            return False
        first = self.now.valid
        while self.now.valid < self.cut_from + self.cut_count:  # the room is there: these entries were there
            i = self.now.valid - self.cut_from
            self.chain[self.now.valid] = self.cut[i]
            self.now.commits += self.cut[i].commit != 0
            self.now.valid += 1
        self.now.at_end = self.before.at_end
        return self.before.judged
