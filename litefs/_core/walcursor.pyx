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
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from litefs._core.walframes cimport View, is_page_size, wal_sum

from litefs._core.loggedframes import LoggedFrames
from litefs._core.walframes import build_frames, wal_checksum

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
    GIL_FRAMES = 256
    IDLE_MEMORY = 1 << 18  # a buffer larger than this is given back when it is empty

cdef inline uint32_t lock_pgno(uint32_t page_size) noexcept nogil:
    return 0x40000000 // page_size + 1


cdef struct Frame:
    uint32_t pgno
    uint32_t commit
    uint32_t c1  # running checksum after the frame
    uint32_t c2

cdef struct State:  # what `reject` puts back as it is
    int64_t valid
    int64_t commits
    bint judged
    bint at_end  # judged because the file ends within the frame after the chain
    int64_t summed  # bytes of that frame's page whose sum is in sum1, sum2
    uint32_t sum1
    uint32_t sum2

cdef int compare_keys(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0], y = (<const uint64_t*>b)[0]
    return (x > y) - (x < y)


cdef class Transaction:
    cdef readonly uint32_t commit
    cdef readonly int64_t first_frame, last_frame
    cdef readonly bytes frame_pgnos, pgnos, offsets
    cdef readonly object images


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
    # The window: bytes at mem + low.
    cdef uint8_t* mem
    cdef size_t room, low
    cdef int64_t base, known
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
        free(self.mem)
        free(self.cut)
        free(self.over)

    @property
    def valid_frames(self):
        return self.now.valid

    @property
    def commits(self):
        return self.now.commits

    @property
    def checksum(self):
        return self.c1, self.c2

    @property
    def buffered(self):
        return self.known

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
        if file_size < self.base + self.known or file_size < self.tip_offset + self.now.valid * self.frame_size:
            self.shrink(file_size)
        self.file_size = file_size
        self.file_end = max(file_size, self.end) if self.view.len else file_size
        self.before = self.now
        self.known_before = self.known
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
        if self.append(view.p, n) < 0:
            raise MemoryError
        return self.answer()

    def accept(self):
        if not self.proposed or self.want_length:
            raise ValueError("no judged proposal to accept")
        self.settle()
        if self.known > self.limit:
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
                self.begin_window(self.frame_offset(self.now.valid))
            else:
                self.known = self.known_before
                if self.over_length:
                    memcpy(self.at(self.start), self.over, self.over_length)
        self.settle()

    def pending(self):
        return (self.start, self.view_object()) if self.proposed else None

    def take(self):
        if self.want_length:
            raise ValueError("bytes are wanted before the chain is known")
        if self.now.commits == 0:
            return None
        cdef int64_t n = 1
        while self.chain[n - 1].commit == 0:
            n += 1
        return self.transaction(n)

    def advance(self, int64_t last_frame):
        cdef int64_t n = last_frame - self.logged_frames, i, dropped
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
        if self.base < self.tip_offset:
            dropped = min(self.tip_offset - self.base, self.known)
            self.low += dropped
            self.known -= dropped
            self.base = self.tip_offset
        self.shed()

    # --- no Python below, except where an object is made

    cdef object view_object(self):
        return <object>self.view.obj

    cdef inline int64_t frame_offset(self, int64_t k) noexcept nogil:
        return self.tip_offset + k * self.frame_size

    cdef inline uint8_t* at(self, int64_t offset) noexcept nogil:
        return self.mem + self.low + (offset - self.base)

    cdef void settle(self) noexcept:
        """The proposal is over."""
        if self.proposed:
            PyBuffer_Release(&self.view)
        self.proposed = False
        self.want_length = self.cut_count = self.over_length = 0

    cdef void forget(self) noexcept:
        """Nothing is known beyond the tip."""
        memset(&self.now, 0, sizeof(State))
        self.begin_window(self.tip_offset)

    cdef void begin_window(self, int64_t base) noexcept nogil:
        self.base = base
        self.known = 0
        self.low = 0

    cdef void shed(self) noexcept:
        """Give large empty buffers back."""
        if self.known == 0:
            self.low = 0
            if self.room > IDLE_MEMORY:
                free(self.mem)
                self.mem = NULL
                self.room = 0
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
        cdef int64_t chained = self.frame_offset(self.now.valid) - self.base
        if self.known // 2 <= chained <= self.known:  # else moving the rest would cost more than it frees
            self.low += chained
            self.base += chained
            self.known -= chained
        self.known = min(self.known, self.limit)
        if self.known + <int64_t>self.low > 2 * self.limit:
            memmove(self.mem, self.mem + self.low, self.known)
            self.low = 0
        self.shed()

    cdef void shrink(self, int64_t file_size) noexcept:
        """The file was cut: so are the window and the chain."""
        cdef int64_t whole = max(0, file_size - self.tip_offset) // self.frame_size
        self.known = min(self.known, max(0, file_size - self.base))
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
        if self.start < self.base:  # bytes that were dropped: a new window, from the frame that is written
            self.begin_window(self.frame_offset(first))
            self.window_lost = True
        if self.start > self.base + self.known:
            return 0
        n = min(self.end, self.base + self.known) - self.start
        if n > 0:
            if <size_t>n > self.over_room:
                grown = realloc(self.over, n)
                if grown == NULL:
                    return NO_MEMORY
                self.over = <uint8_t*>grown
                self.over_room = n
            memcpy(self.over, self.at(self.start), n)
            self.over_length = n
            memcpy(self.at(self.start), self.data, n)
        return self.append(self.data + n, self.end - self.start - n)

    cdef int append(self, const uint8_t* p, int64_t n) noexcept nogil:
        """`n` bytes more at the end of the window; zeros if `p` is NULL."""
        cdef size_t total, room
        cdef void* grown
        if n <= 0:
            return 0
        total = self.known + n
        if self.low + total > self.room:
            if self.low:
                memmove(self.mem, self.mem + self.low, self.known)
                self.low = 0
            if 2 * total > self.room:  # so that at least half of the room is filled before bytes move again
                room = max(2 * total, <size_t>8192)
                grown = realloc(self.mem, room)
                if grown == NULL:
                    return NO_MEMORY
                self.mem = <uint8_t*>grown
                self.room = room
        if p == NULL:
            memset(self.mem + self.low + self.known, 0, n)
        else:
            memcpy(self.mem + self.low + self.known, p, n)
        self.known += n
        return 0

    cdef int fill(self, int64_t target) noexcept nogil:
        """Know the bytes up to `target` <= file_end: from the proposal, the file, or the hole between them."""
        cdef int64_t at, stop
        while self.base + self.known < target:
            at = self.base + self.known
            if self.start <= at < self.end:
                if self.append(self.data + (at - self.start), self.end - at) < 0:
                    return NO_MEMORY
                continue
            if at < self.file_size:
                stop = min(self.file_size, max(target, at + READ_AHEAD))
                if at < self.start < self.end:
                    stop = min(stop, self.start)
                self.want_offset = at
                self.want_length = stop - at
                return WANT
            if self.append(NULL, min(self.start, target) - at) < 0:
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
        cdef int64_t offset, end
        cdef int result
        while True:
            offset = self.frame_offset(self.now.valid)
            end = offset + self.frame_size
            self.now.at_end = end > self.file_end
            if self.now.at_end:
                break
            if not self.base <= offset <= self.base + self.known:
                self.begin_window(offset)
                self.window_lost = True
            result = self.fill(offset + FRAME_HEADER)
            if result < 0:
                return result
            if memcmp(self.at(offset) + 8, self.salts, 8) != 0 or be32(self.at(offset)) == 0:
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
        cdef const uint8_t* frame = self.at(offset)
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

    cdef Transaction transaction(self, int64_t n):
        """The first `n` frames of the chain, of which the last is the first commit frame."""
        cdef Transaction result = Transaction.__new__(Transaction)
        cdef uint64_t* keys = <uint64_t*>malloc(n * sizeof(uint64_t))
        cdef int64_t pages, i
        cdef uint32_t* numbers
        cdef uint64_t* offsets
        cdef uint8_t* images
        if keys == NULL:
            raise MemoryError
        try:
            result.commit = self.chain[n - 1].commit
            result.first_frame = self.logged_frames + 1
            result.last_frame = self.logged_frames + n
            result.frame_pgnos = PyBytes_FromStringAndSize(NULL, n * 4)
            numbers = <uint32_t*>PyBytes_AS_STRING(result.frame_pgnos)
            for i in range(n):
                numbers[i] = self.chain[i].pgno
            if n > GIL_FRAMES:
                with nogil:
                    pages = newest_pages(numbers, n, result.commit, lock_pgno(self.page_size), keys)
            else:
                pages = newest_pages(numbers, n, result.commit, lock_pgno(self.page_size), keys)
            result.pgnos = PyBytes_FromStringAndSize(NULL, pages * 4)
            numbers = <uint32_t*>PyBytes_AS_STRING(result.pgnos)
            result.offsets = PyBytes_FromStringAndSize(NULL, pages * 8)
            offsets = <uint64_t*>PyBytes_AS_STRING(result.offsets)
            for i in range(pages):
                numbers[i] = <uint32_t>(keys[i] >> 32)
                offsets[i] = self.frame_offset(<uint32_t>keys[i]) + FRAME_HEADER
            if self.base != self.tip_offset or self.known < n * self.frame_size:
                return result
            result.images = PyByteArray_FromStringAndSize(NULL, pages * self.page_size)
            images = <uint8_t*>PyByteArray_AS_STRING(result.images)
            if pages * self.page_size > GIL_BYTES:
                with nogil:
                    self.copy_images(images, keys, pages)
            else:
                self.copy_images(images, keys, pages)
            return result
        finally:
            free(keys)

    cdef void copy_images(self, uint8_t* images, const uint64_t* keys, int64_t pages) noexcept nogil:
        cdef int64_t i
        for i in range(pages):
            memcpy(images + i * self.page_size,
                   self.at(self.frame_offset(<uint32_t>keys[i])) + FRAME_HEADER, self.page_size)


cdef int64_t newest_pages(const uint32_t* pgnos, int64_t n, uint32_t commit, uint32_t skip,
                          uint64_t* keys) noexcept nogil:
    """keys: page number << 32 | index of its last frame, ascending, without `skip` and pages > commit."""
    cdef int64_t i, count = 0, kept = 0
    cdef bint sorted = True
    for i in range(n):
        if pgnos[i] > commit or pgnos[i] == skip:
            continue
        keys[count] = <uint64_t>pgnos[i] << 32 | <uint64_t>i
        if count and keys[count] < keys[count - 1]:
            sorted = False
        count += 1
    if not sorted:
        qsort(keys, count, sizeof(uint64_t), compare_keys)
    for i in range(count):
        if i + 1 < count and keys[i] >> 32 == keys[i + 1] >> 32:
            continue
        keys[kept] = keys[i]
        kept += 1
    return kept
