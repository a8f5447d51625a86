# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: extra_compile_args = -O3
"""The logged frames of a WAL generation; walcursor.pyi documents the class.

Per frame: the checksum of its page (0 if an older image of the transaction) and the frame before it of the same
page. Per page: its newest frame and whether that waits for its checkpoint, in an open-addressing table.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memcpy, memset

from litefs._core.walframes cimport View

cdef enum:
    FIRST_SLOTS = 1024
    FIRST_FRAMES = 1024

cdef struct Logged:
    uint64_t sum
    uint32_t pgno
    uint32_t previous

cdef struct Slot:
    uint32_t pgno  # 0: free
    uint32_t frame  # newest << 1 | pending

cdef int compare_numbers(const void* a, const void* b) noexcept nogil:
    cdef uint32_t x = (<const uint32_t*>a)[0], y = (<const uint32_t*>b)[0]
    return (x > y) - (x < y)


cdef class LoggedFrames:
    cdef Logged* logged  # frame f at index f - 1
    cdef size_t logged_room
    cdef readonly uint32_t frames
    cdef Slot* slots
    cdef size_t slot_count  # a power of two, at most 2/3 full
    cdef size_t used
    cdef readonly size_t pending
    cdef uint32_t commit  # pages of the database after the last transaction

    def __cinit__(self):
        self.slots = <Slot*>calloc(FIRST_SLOTS, sizeof(Slot))
        self.logged = <Logged*>calloc(FIRST_FRAMES, sizeof(Logged))
        if self.slots == NULL or self.logged == NULL:
            raise MemoryError
        self.slot_count = FIRST_SLOTS
        self.logged_room = FIRST_FRAMES

    def __dealloc__(self):
        free(self.slots)
        free(self.logged)

    def clear(self):
        cdef void* smaller
        if self.slot_count > FIRST_SLOTS:
            smaller = realloc(self.slots, FIRST_SLOTS * sizeof(Slot))
            if smaller != NULL:
                self.slots = <Slot*>smaller
            self.slot_count = FIRST_SLOTS
        if self.logged_room > FIRST_FRAMES:
            smaller = realloc(self.logged, FIRST_FRAMES * sizeof(Logged))
            if smaller != NULL:
                self.logged = <Logged*>smaller
            self.logged_room = FIRST_FRAMES
        memset(self.slots, 0, self.slot_count * sizeof(Slot))
        self.used = self.pending = 0
        self.frames = self.commit = 0

    def add_transaction(self, uint32_t first_frame, frame_pgnos, pgnos, new_sums, uint32_t commit):
        cdef View frame_view = View(frame_pgnos), page_view = View(pgnos), sum_view = View(new_sums)
        cdef size_t n = frame_view.n // 4, pages = page_view.n // 4, i
        cdef uint32_t pgno, frame
        cdef Slot* slot
        if first_frame != self.frames + 1 or n == 0:
            raise ValueError(f"{n} frames from {first_frame}, after {self.frames}")
        if frame_view.n % 4 or page_view.n % 4 or sum_view.n != 8 * pages or pages > n:
            raise ValueError(f"{frame_view.n} and {page_view.n} bytes of page numbers, "
                             f"{sum_view.n} of checksums")
        if n >= 0x7fffffff - self.frames:
            raise ValueError("more frames than a WAL can have")
        self.reserve(n)
        for i in range(n):
            memcpy(&pgno, frame_view.p + 4 * i, 4)
            if pgno == 0:
                raise ValueError("page number 0")
            slot = self.lookup(pgno)
            frame = first_frame + <uint32_t>i
            self.logged[frame - 1].sum = 0
            self.logged[frame - 1].pgno = pgno
            self.logged[frame - 1].previous = slot.frame >> 1
            if slot.pgno == 0:
                slot.pgno = pgno
                self.used += 1
            slot.frame = frame << 1 | (slot.frame & 1)
        self.frames += <uint32_t>n
        for i in range(pages):
            memcpy(&pgno, page_view.p + 4 * i, 4)
            slot = self.lookup(pgno)
            if slot.frame >> 1 < first_frame:
                raise ValueError(f"page {pgno} has no frame in this transaction")
            memcpy(&self.logged[(slot.frame >> 1) - 1].sum, sum_view.p + 8 * i, 8)
            self.pending += 1 - (slot.frame & 1)
            slot.frame |= 1
        if commit < self.commit:
            self.drop_beyond(commit)
        self.commit = commit

    def newest(self, uint32_t pgno):
        return self.lookup(pgno).frame >> 1

    def is_pending(self, uint32_t pgno):
        return self.lookup(pgno).frame & 1 == 1

    def backfilled(self, uint32_t pgno):
        cdef Slot* slot = self.lookup(pgno)
        self.pending -= slot.frame & 1
        slot.frame &= ~<uint32_t>1

    def knows(self, uint32_t pgno, uint64_t page_sum):
        cdef uint32_t frame = self.lookup(pgno).frame >> 1
        while frame:
            if self.logged[frame - 1].sum == page_sum and page_sum != 0:
                return True
            frame = self.logged[frame - 1].previous
        return False

    def truncate(self, uint32_t commit):
        self.drop_beyond(commit)
        self.commit = min(self.commit, commit)

    def pending_pages(self):
        cdef size_t i, count = 0
        numbers = PyBytes_FromStringAndSize(NULL, self.pending * 4)
        cdef uint32_t* out = <uint32_t*>PyBytes_AS_STRING(numbers)
        for i in range(self.slot_count):
            if self.slots[i].frame & 1:
                out[count] = self.slots[i].pgno
                count += 1
        qsort(out, count, 4, compare_numbers)
        return numbers

    cdef inline Slot* lookup(self, uint32_t pgno) noexcept:
        """The page's slot, or the free one where it belongs (its frame is 0)."""
        # Multiplication by the golden ratio spreads neighbouring numbers.
        cdef size_t mask = self.slot_count - 1, i = (pgno * <uint64_t>0x9E3779B97F4A7C15 >> 32) & mask
        while self.slots[i].pgno != pgno and self.slots[i].pgno != 0:
            i = (i + 1) & mask
        return self.slots + i

    cdef void drop_beyond(self, uint32_t commit) noexcept:
        cdef size_t i
        for i in range(self.slot_count):
            if self.slots[i].pgno > commit and self.slots[i].frame & 1:
                self.slots[i].frame &= ~<uint32_t>1
                self.pending -= 1

    cdef int reserve(self, size_t n) except -1:
        """Room for `n` more frames, and as many pages."""
        cdef size_t room = self.logged_room, i, old_count = self.slot_count
        cdef Slot* old = self.slots
        cdef Slot* slots
        cdef Logged* logged
        while room < self.frames + n:
            room *= 2
        if room != self.logged_room:
            logged = <Logged*>realloc(self.logged, room * sizeof(Logged))
            if logged == NULL:
                raise MemoryError
            self.logged = logged
            self.logged_room = room
        room = old_count
        while 3 * (self.used + n) > 2 * room:
            room *= 2
        if room == old_count:
            return 0
        slots = <Slot*>calloc(room, sizeof(Slot))
        if slots == NULL:
            raise MemoryError
        self.slots = slots
        self.slot_count = room
        for i in range(old_count):
            if old[i].pgno:
                self.lookup(old[i].pgno)[0] = old[i]
        free(old)
        return 0
