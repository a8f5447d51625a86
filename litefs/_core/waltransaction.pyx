# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: extra_compile_args = -O3
"""A committed transaction, made from the frames of a WAL; walcursor.pyi documents the class."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

cdef enum:
    FRAME_HEADER = 24
    GIL_BYTES = 16384  # less work than this is done with the GIL held: dropping it costs more
    GIL_FRAMES = 256

cdef int compare_keys(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0], y = (<const uint64_t*>b)[0]
    return (x > y) - (x < y)

cdef int64_t newest_pages(const Frame* frames, int64_t n, uint32_t commit, uint32_t skip,
                          uint64_t* keys) noexcept nogil:
    """keys: page number << 32 | index of its last frame, ascending, without `skip` and pages > commit."""
    cdef int64_t i, count = 0, kept = 0
    cdef bint ascending = True
    for i in range(n):
        if frames[i].pgno > commit or frames[i].pgno == skip:
            continue
        keys[count] = <uint64_t>frames[i].pgno << 32 | <uint64_t>i
        if count and keys[count] < keys[count - 1]:
            ascending = False
        count += 1
    if not ascending:
        qsort(keys, count, sizeof(uint64_t), compare_keys)
    for i in range(count):
        if i + 1 < count and keys[i] >> 32 == keys[i + 1] >> 32:
            continue
        keys[kept] = keys[i]
        kept += 1
    return kept

cdef void copy_images(uint8_t* images, const uint8_t* data, const uint64_t* keys, int64_t pages,
                      int64_t page_size) noexcept nogil:
    cdef int64_t i
    for i in range(pages):
        memcpy(images + i * page_size, data + <uint32_t>keys[i] * (FRAME_HEADER + page_size) + FRAME_HEADER,
               page_size)


cdef class Transaction:
    pass


cdef Transaction make_transaction(const Frame* frames, int64_t n, int64_t logged, int64_t offset,
                                  int64_t page_size, const uint8_t* data):
    cdef Transaction result = Transaction.__new__(Transaction)
    cdef uint32_t commit = frames[n - 1].commit, lock_pgno = 0x40000000 // <uint32_t>page_size + 1
    cdef uint64_t* keys = <uint64_t*>malloc(n * sizeof(uint64_t))
    cdef int64_t pages, i
    cdef uint32_t* numbers
    cdef uint64_t* offsets
    cdef uint8_t* images
    if keys == NULL:
        raise MemoryError
    try:
        result.commit = commit
        result.first_frame = logged + 1
        result.last_frame = logged + n
        result.frame_pgnos = PyBytes_FromStringAndSize(NULL, n * 4)
        numbers = <uint32_t*>PyBytes_AS_STRING(result.frame_pgnos)
        for i in range(n):
            numbers[i] = frames[i].pgno
        if n > GIL_FRAMES:
            with nogil:
                pages = newest_pages(frames, n, commit, lock_pgno, keys)
        else:
            pages = newest_pages(frames, n, commit, lock_pgno, keys)
        result.pgnos = PyBytes_FromStringAndSize(NULL, pages * 4)
        numbers = <uint32_t*>PyBytes_AS_STRING(result.pgnos)
        result.offsets = PyBytes_FromStringAndSize(NULL, pages * 8)
        offsets = <uint64_t*>PyBytes_AS_STRING(result.offsets)
        for i in range(pages):
            numbers[i] = <uint32_t>(keys[i] >> 32)
            offsets[i] = offset + <uint32_t>keys[i] * (FRAME_HEADER + page_size) + FRAME_HEADER
        if data == NULL:
            return result
        result.images = PyByteArray_FromStringAndSize(NULL, pages * page_size)
        images = <uint8_t*>PyByteArray_AS_STRING(result.images)
        if pages * page_size > GIL_BYTES:
            with nogil:
                copy_images(images, data, keys, pages, page_size)
        else:
            copy_images(images, data, keys, pages, page_size)
        return result
    finally:
        free(keys)
