from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint8_t, uint32_t

cdef inline bint is_page_size(uint32_t size) noexcept nogil:
    return 512 <= size <= 65536 and size & (size - 1) == 0

# SQLite's WAL checksum of n bytes (a multiple of 8), continued in place from (c1, c2). big: words big-endian.
cdef void wal_sum(const uint8_t* p, size_t n, bint big, uint32_t* c1, uint32_t* c2) noexcept nogil

# The bytes of any contiguous object, whatever its items are; held until the view is collected.
cdef class View:
    cdef Py_buffer buffer
    cdef const uint8_t* p
    cdef size_t n
