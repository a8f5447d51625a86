# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: extra_compile_args = -O3
"""The wal-index; walindex.pyi documents the interface.

A region of 32 KiB is an array of page numbers, one per frame, and a hash table of 8192 u16 slots that finds the
frames of a page: a slot holds 1 + the index into the array, 0 is free, collisions go to the next slot. In the
first region the header takes the place of the first 34 page numbers.
"""

import struct
from typing import NamedTuple

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy, memset

from litefs._core.walframes cimport View, is_page_size, wal_sum

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint32_t load_u32(const uint8_t *p) {
        return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE);
    }
    static inline void store_u32(uint8_t *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline void store_u16(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void barrier(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint32_t load_u32(const uint8_t* p) nogil
    void store_u32(uint8_t* p, uint32_t v) nogil
    void store_u16(uint16_t* p, uint16_t v) nogil
    void barrier() nogil

cdef enum:
    REGION = 32768
    HEADER = 48
    BACKFILL = 96
    MARKS = 100
    ATTEMPTED = 128
    NUMBERS = 136  # where the page numbers of the first region begin
    PER_REGION = 4096
    IN_FIRST = 4062
    HASH = 16384
    SLOTS = 8192
    GIL_FRAMES = 1024  # less work than this is done with the GIL held: dropping it costs more
    DAMAGED = -2

VERSION = 3007000
REGION_SIZE = REGION
HEADER_SIZE = HEADER
READ_MARKS = 5
READ_MARK_UNUSED = 0xffffffff

_FIELDS = struct.Struct("=IIIBBHII2I")
_SALTS = struct.Struct(">2I")
_CKSUM = struct.Struct("=2I")


cdef tuple header_sum(const uint8_t* p):
    """The checksum over the header's first 40 bytes, always in native words."""
    cdef uint32_t a = 0, b = 0
    wal_sum(p, 40, False, &a, &b)
    return a, b


class IndexHeader(NamedTuple):
    version: int = 3007000
    change: int = 0
    is_init: int = 1
    big_end_cksum: int = 0
    page_size: int = 0
    mx_frame: int = 0
    n_page: int = 0
    frame_cksum: tuple = (0, 0)
    salt: tuple = (0, 0)
    cksum: tuple = (0, 0)

    def pack(self):
        cdef bytes data
        if not is_page_size(self.page_size):
            raise ValueError(f"page size {self.page_size}")
        # 65536 does not fit into the field, and is stored as 1.
        data = _FIELDS.pack(self.version, 0, self.change & 0xffffffff, self.is_init, self.big_end_cksum,
                            1 if self.page_size == 65536 else self.page_size, self.mx_frame, self.n_page,
                            *self.frame_cksum) + _SALTS.pack(*self.salt)
        return data + _CKSUM.pack(*header_sum(<const uint8_t*>PyBytes_AS_STRING(data)))

    @classmethod
    def parse(cls, data):
        raw = bytes(data[:HEADER])
        if len(raw) < HEADER:
            raise ValueError(f"wal-index header of {len(raw)} bytes")
        version, _, change, is_init, big, size, mx_frame, n_page, f1, f2 = _FIELDS.unpack_from(raw)
        cksum = _CKSUM.unpack_from(raw, 40)
        if not is_init or version != VERSION:
            raise ValueError(f"wal-index header: version {version}, initialised {is_init}")
        if cksum != header_sum(<const uint8_t*>PyBytes_AS_STRING(raw)):
            raise ValueError("wal-index header: wrong checksum")
        size = 65536 if size == 1 else size
        if size and not is_page_size(size):  # 0: as SQLite leaves it for an empty WAL without a header
            raise ValueError(f"wal-index header: page size {size}")
        return cls(version, change, is_init, big, size, mx_frame, n_page, (f1, f2), _SALTS.unpack_from(raw, 32), cksum)


cdef inline int64_t region_of(int64_t frame) noexcept nogil:
    return (frame + PER_REGION - IN_FIRST - 1) // PER_REGION

cdef inline int64_t frames_before(int64_t region) noexcept nogil:
    """Frames in the regions before this one."""
    return IN_FIRST + (region - 1) * PER_REGION if region else 0

cdef inline uint32_t* numbers_of(uint8_t* map, int64_t region) noexcept nogil:
    return <uint32_t*>(map + region * REGION + (0 if region else NUMBERS))

cdef inline uint16_t* slots_of(uint8_t* map, int64_t region) noexcept nogil:
    return <uint16_t*>(map + region * REGION + HASH)

cdef int compare_keys(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0], y = (<const uint64_t*>b)[0]
    return (x > y) - (x < y)

cdef void clean(uint8_t* map, int64_t region, int64_t keep) noexcept nogil:
    """Remove all but the first `keep` frames of a region."""
    cdef uint32_t* numbers = numbers_of(map, region)
    cdef uint16_t* slots = slots_of(map, region)
    cdef int64_t i
    for i in range(SLOTS):
        if slots[i] > keep:
            slots[i] = 0
    memset(numbers + keep, 0, <uint8_t*>slots - <uint8_t*>(numbers + keep))

cdef int insert(uint8_t* map, int64_t frame, const uint8_t* pgnos, int64_t n) noexcept nogil:
    cdef int64_t i, region, index, probes
    cdef uint32_t pgno, slot
    cdef uint32_t* numbers
    cdef uint16_t* slots
    for i in range(n):
        memcpy(&pgno, pgnos + 4 * i, 4)
        region = region_of(frame + i)
        index = frame + i - frames_before(region)
        numbers = numbers_of(map, region)
        slots = slots_of(map, region)
        if index == 1:
            memset(numbers, 0, map + (region + 1) * REGION - <uint8_t*>numbers)
        elif numbers[index - 1] != 0:  # a writer that died or rolled back left entries
            clean(map, region, index - 1)
        slot = pgno * 383 & (SLOTS - 1)
        probes = 0
        while slots[slot] != 0:
            probes += 1
            if probes > index:
                return DAMAGED
            slot = (slot + 1) & (SLOTS - 1)
        numbers[index - 1] = pgno
        # The page number must be there before the slot that leads to it: readers do not lock.
        store_u16(slots + slot, <uint16_t>index)
    return 0

cdef int64_t search(uint8_t* map, uint32_t pgno, int64_t last, int64_t first) noexcept nogil:
    cdef int64_t region = region_of(last), lowest = region_of(first), before, frame, found, probes
    cdef uint32_t* numbers
    cdef uint16_t* slots
    cdef uint32_t slot, index
    while region >= lowest:
        before = frames_before(region)
        numbers = numbers_of(map, region)
        slots = slots_of(map, region)
        slot = pgno * 383 & (SLOTS - 1)
        found = probes = 0
        while True:
            index = slots[slot]
            if index == 0:
                break
            frame = before + index
            if first <= frame <= last and frame > found and numbers[index - 1] == pgno:
                found = frame
            probes += 1
            if probes > SLOTS - 1:
                return DAMAGED
            slot = (slot + 1) & (SLOTS - 1)
        if found:
            return found
        region -= 1
    return 0

cdef int64_t collect(uint8_t* map, int64_t first, int64_t last, uint64_t* keys) noexcept nogil:
    """keys: page number << 32 | newest frame, ascending."""
    cdef int64_t frame, region, count = 0, kept = 0, i
    for frame in range(first, last + 1):
        region = region_of(frame)
        keys[count] = <uint64_t>numbers_of(map, region)[frame - frames_before(region) - 1] << 32 | <uint64_t>frame
        count += 1
    qsort(keys, count, sizeof(uint64_t), compare_keys)
    for i in range(count):
        if i + 1 < count and keys[i] >> 32 == keys[i + 1] >> 32:
            continue
        keys[kept] = keys[i]
        kept += 1
    return kept


def regions_for(int64_t frame):
    return region_of(max(frame, 1)) + 1


cdef class WalIndex:
    cdef Py_buffer buffer
    cdef bint bound
    cdef uint8_t* map
    cdef int64_t regions

    def __init__(self, buf):
        self.rebind(buf)

    def __dealloc__(self):
        if self.bound:
            PyBuffer_Release(&self.buffer)

    def rebind(self, buf):
        cdef Py_buffer buffer
        PyObject_GetBuffer(buf, &buffer, PyBUF_WRITABLE)
        if buffer.len < REGION or buffer.len % REGION or <size_t>buffer.buf % 8:
            size = buffer.len
            PyBuffer_Release(&buffer)
            raise ValueError(f"a wal-index of {size} bytes, or not aligned")
        self.release()
        self.buffer = buffer
        self.bound = True
        self.map = <uint8_t*>buffer.buf
        self.regions = buffer.len // REGION

    def release(self):
        if self.bound:
            PyBuffer_Release(&self.buffer)
        self.bound = False
        self.map = NULL
        self.regions = 0

    @property
    def capacity(self):
        return frames_before(self.regions)

    def header(self):
        cdef uint8_t[HEADER] first, second
        self.check(0)
        memcpy(first, self.map, HEADER)
        barrier()
        memcpy(second, self.map + HEADER, HEADER)
        one = PyBytes_FromStringAndSize(<char*>first, HEADER)
        if one != PyBytes_FromStringAndSize(<char*>second, HEADER):
            return None
        try:
            return IndexHeader.parse(one)
        except ValueError:
            return None

    def publish(self, header):
        cdef bytes data = header.pack()
        self.check(0)
        barrier()
        memcpy(self.map + HEADER, PyBytes_AS_STRING(data), HEADER)
        barrier()
        memcpy(self.map, PyBytes_AS_STRING(data), HEADER)
        barrier()

    def invalidate(self):
        self.check(0)
        memset(self.map + HEADER, 0, HEADER)
        barrier()
        memset(self.map, 0, HEADER)
        barrier()

    @property
    def backfill(self):
        self.check(0)
        return load_u32(self.map + BACKFILL)

    @backfill.setter
    def backfill(self, uint32_t value):
        self.check(0)
        store_u32(self.map + BACKFILL, value)

    @property
    def backfill_attempted(self):
        self.check(0)
        return load_u32(self.map + ATTEMPTED)

    @backfill_attempted.setter
    def backfill_attempted(self, uint32_t value):
        self.check(0)
        store_u32(self.map + ATTEMPTED, value)

    def read_mark(self, int i):
        self.check(0)
        if not 0 <= i < READ_MARKS:
            raise IndexError(f"no read mark {i}")
        return load_u32(self.map + MARKS + 4 * i)

    def set_read_mark(self, int i, uint32_t value):
        self.check(0)
        if not 0 <= i < READ_MARKS:
            raise IndexError(f"no read mark {i}")
        store_u32(self.map + MARKS + 4 * i, value)

    def regions_for(self, int64_t frame):
        return regions_for(frame)

    def append(self, int64_t first_frame, pgnos):
        cdef View view = View(pgnos)
        cdef int64_t n = view.n // 4
        cdef int result
        if view.n % 4 or first_frame < 1:
            raise ValueError(f"{view.n} bytes of page numbers from frame {first_frame}")
        self.check(first_frame)  # by itself: the sum could overflow
        self.check(first_frame + n - 1)
        if n > GIL_FRAMES:
            with nogil:
                result = insert(self.map, first_frame, view.p, n)
        else:
            result = insert(self.map, first_frame, view.p, n)
        if result == DAMAGED:
            raise ValueError("wal-index: a hash table is full of wrong entries")

    def trim(self, int64_t mx_frame):
        cdef int64_t region
        if mx_frame <= 0:  # nothing to keep: the first slot of each region zeroes it
            return
        self.check(mx_frame)
        region = region_of(mx_frame)
        clean(self.map, region, mx_frame - frames_before(region))

    def find(self, uint32_t pgno, int64_t max_frame, int64_t min_frame=1):
        cdef int64_t result
        self.check(max_frame)
        if max_frame < max(min_frame, 1):
            return 0
        result = search(self.map, pgno, max_frame, max(min_frame, 1))
        if result == DAMAGED:
            raise ValueError("wal-index: a hash table has no free slot")
        return result

    def newest(self, int64_t max_frame, int64_t min_frame=1):
        cdef int64_t n, i, first = max(min_frame, 1)
        cdef uint64_t* keys
        self.check(max_frame)
        if max_frame < first:
            return b"", b""
        n = max_frame - first + 1
        keys = <uint64_t*>malloc(n * sizeof(uint64_t))
        if keys == NULL:
            raise MemoryError
        try:
            if n > GIL_FRAMES:
                with nogil:
                    n = collect(self.map, first, max_frame, keys)
            else:
                n = collect(self.map, first, max_frame, keys)
            pgnos = PyBytes_FromStringAndSize(NULL, n * 4)
            frames = PyBytes_FromStringAndSize(NULL, n * 4)
            for i in range(n):
                (<uint32_t*>PyBytes_AS_STRING(pgnos))[i] = <uint32_t>(keys[i] >> 32)
                (<uint32_t*>PyBytes_AS_STRING(frames))[i] = <uint32_t>keys[i]
            return pgnos, frames
        finally:
            free(keys)

    cdef int check(self, int64_t frame) except -1:
        if not self.bound:
            raise ValueError("the wal-index was released")
        if frame > frames_before(self.regions):
            raise ValueError(f"frame {frame} lies outside the {self.regions} mapped regions of the wal-index")
        return 0
