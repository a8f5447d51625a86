# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: libraries = lz4
"""Encode the page block of an LTX v3 file (page frames, their end, the page index), and whole records in one call.

Layout (all integers big-endian; github.com/superfly/ltx, README and encoder.go):

    frame      u32 pgno, u16 flags, [u32 size if flags & 1], data
    end        six zero bytes
    index      per page uvarint pgno, offset of its frame in the file, size of its frame; uvarint 0; u64 bytes before
    trailer    u64 checksum of the database after it, u64 checksum of the file

``flags`` 1: data is one LZ4 block of ``size`` bytes. ``flags`` 0: data is one LZ4 frame (ltx 0.5.0 and 0.5.1). The file
checksum covers everything before it, but of each page's data the bytes *before* compression.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from litefs._core.crc64 cimport crc64_update
from litefs._core.ltxbytes cimport (
    END_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    INDEX_ENTRY_BYTES,
    NOGIL_BYTES,
    TRAILER_BYTES,
    check_page_size,
    get32,
    get64,
    lock_page,
    put32,
    put64,
    put_uvarint,
    with_flag,
)

cdef extern from "Python.h":
    PyObject* new_bytes "PyBytes_FromStringAndSize"(const char* data, Py_ssize_t size) except NULL
    int _PyBytes_Resize(PyObject** bytes, Py_ssize_t size) except -1

cdef extern from "lz4.h" nogil:
    int LZ4_compressBound(int size)
    int LZ4_compress_fast(const char* src, char* dst, int src_size, int capacity, int acceleration)

cdef enum:
    # On database pages a fifth faster than 1 and 1-2 % bigger; from 4 on the size suffers more than the speed gains.
    ACCELERATION = 2


cdef int _check_pages(Py_buffer* pgnos, Py_buffer* images, uint32_t page_size, uint32_t last) except -1:
    """Whole pages, aligned numbers ascending from after ``last``, no lock page."""
    cdef const uint32_t* numbers = <const uint32_t*>pgnos.buf
    cdef Py_ssize_t i, n = pgnos.len // 4
    cdef uint32_t lock = lock_page(page_size)
    if pgnos.len % 4 or images.len != n * page_size:
        raise ValueError(f"{pgnos.len} bytes of page numbers do not fit {images.len} bytes of {page_size}-byte pages")
    if n and <size_t>pgnos.buf % 4:
        raise ValueError("the page numbers are not aligned to 4 bytes")
    for i in range(n):
        if numbers[i] <= last:
            raise ValueError(f"page {numbers[i]} does not follow page {last}")
        if numbers[i] == lock:
            raise ValueError(f"page {lock} is the lock page")
        last = numbers[i]
    return 0


cdef uint8_t* _encode_frames(
    uint8_t* out, const uint32_t* pgnos, const uint8_t* images, Py_ssize_t n, uint32_t page_size, uint64_t* crc
) noexcept nogil:
    """Frames of ``n`` pages at ``out``, which has room for the worst case; the byte after them, NULL on failure."""
    cdef Py_ssize_t i
    cdef int size, bound = LZ4_compressBound(<int>page_size)
    cdef uint64_t sum = crc[0]
    for i in range(n):
        size = LZ4_compress_fast(
            <const char*>images, <char*>out + FRAME_BYTES, <int>page_size, bound, ACCELERATION
        )
        if size <= 0:
            return NULL
        put32(out, pgnos[i])
        out[4] = 0
        out[5] = 1
        put32(out + 6, <uint32_t>size)
        sum = crc64_update(crc64_update(sum, out, FRAME_BYTES), images, page_size)
        out += FRAME_BYTES + size
        images += page_size
    crc[0] = sum
    return out


cdef uint8_t* _encode_index(const uint8_t* frame, const uint8_t* end, uint64_t offset, uint8_t* out) noexcept nogil:
    """Index entries for the frames from ``frame`` to ``end``, the first of which is at ``offset`` in the file."""
    cdef uint32_t size
    while frame < end:
        size = FRAME_BYTES + get32(frame + 6)
        out = put_uvarint(put_uvarint(put_uvarint(out, get32(frame)), offset), size)
        frame += size
        offset += size
    return out


cdef Py_ssize_t _frames_bound(Py_ssize_t n, uint32_t page_size) noexcept:
    return n * (FRAME_BYTES + LZ4_compressBound(<int>page_size))


def encode_pages(pgnos, images, uint32_t page_size, uint64_t base_offset, uint64_t crc):
    cdef Py_buffer numbers, pages
    cdef Py_ssize_t n
    cdef PyObject* block
    cdef uint8_t* start
    cdef uint8_t* end
    cdef uint8_t* entries
    check_page_size(page_size)
    PyObject_GetBuffer(pgnos, &numbers, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(images, &pages, PyBUF_SIMPLE)
        try:
            _check_pages(&numbers, &pages, page_size, 0)
            n = numbers.len // 4
            block = new_bytes(NULL, _frames_bound(n, page_size))
            start = <uint8_t*>PyBytes_AS_STRING(<object>block)
            with nogil:
                end = _encode_frames(
                    start, <const uint32_t*>numbers.buf, <const uint8_t*>pages.buf, n, page_size, &crc
                )
            if end is NULL:
                Py_DECREF(<object>block)
                raise RuntimeError("LZ4 could not compress a page")
        finally:
            PyBuffer_Release(&pages)
    finally:
        PyBuffer_Release(&numbers)
    index = bytearray(n * INDEX_ENTRY_BYTES)
    entries = <uint8_t*>PyByteArray_AS_STRING(index)
    del index[_encode_index(start, end, base_offset, entries) - entries:]
    _PyBytes_Resize(&block, end - start)
    result = <object>block
    Py_DECREF(result)
    return result, bytes(index), crc


cdef int _check_complete(const uint8_t* header, Py_buffer* pgnos) except -1:
    """What the header promises of the pages: none beyond commit, and all of them in a first record."""
    cdef const uint32_t* numbers = <const uint32_t*>pgnos.buf
    cdef Py_ssize_t n = pgnos.len // 4
    cdef uint32_t commit = get32(header + 12)
    if n and numbers[n - 1] > commit:
        raise ValueError(f"page {numbers[n - 1]} lies beyond the database's {commit} pages")
    if get64(header + 16) == 1 and n != <Py_ssize_t>commit - (lock_page(get32(header + 8)) <= commit):
        raise ValueError(f"a record from transaction 1 on must hold all {commit} pages, not {n}")
    return 0


cdef uint8_t* _encode_whole(
    uint8_t* out, const uint8_t* header, Py_buffer* pgnos, Py_buffer* images, uint32_t page_size, uint64_t post
) noexcept nogil:
    cdef uint8_t* frames = out + HEADER_BYTES
    cdef uint8_t* end
    cdef uint8_t* index
    cdef uint64_t crc = crc64_update(0, header, HEADER_BYTES)
    memcpy(out, header, HEADER_BYTES)
    end = _encode_frames(
        frames, <const uint32_t*>pgnos.buf, <const uint8_t*>images.buf, pgnos.len // 4, page_size, &crc
    )
    if end is NULL:
        return NULL
    memset(end, 0, END_BYTES)
    index = _encode_index(frames, end, HEADER_BYTES, end + END_BYTES)
    index[0] = 0
    put64(index + 1, <uint64_t>(index + 1 - (end + END_BYTES)))
    put64(index + 9, post)
    crc = crc64_update(crc, end, <size_t>(index + 17 - end))
    put64(index + 17, with_flag(crc))
    return index + 25


def encode_record(header, pgnos, images, uint64_t post):
    cdef Py_buffer head, numbers, pages
    cdef Py_ssize_t n
    cdef uint32_t page_size
    cdef PyObject* record
    cdef uint8_t* start
    cdef uint8_t* end
    PyObject_GetBuffer(header, &head, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(pgnos, &numbers, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(images, &pages, PyBUF_SIMPLE)
            try:
                if head.len != HEADER_BYTES:
                    raise ValueError(f"a header of {head.len} bytes instead of {HEADER_BYTES}")
                page_size = get32(<const uint8_t*>head.buf + 8)
                check_page_size(page_size)
                _check_pages(&numbers, &pages, page_size, 0)
                _check_complete(<const uint8_t*>head.buf, &numbers)
                n = numbers.len // 4
                record = new_bytes(
                    NULL,
                    HEADER_BYTES + _frames_bound(n, page_size) + END_BYTES + n * INDEX_ENTRY_BYTES + 9 + TRAILER_BYTES,
                )
                start = <uint8_t*>PyBytes_AS_STRING(<object>record)
                if pages.len < NOGIL_BYTES:
                    end = _encode_whole(start, <const uint8_t*>head.buf, &numbers, &pages, page_size, post)
                else:
                    with nogil:
                        end = _encode_whole(start, <const uint8_t*>head.buf, &numbers, &pages, page_size, post)
                if end is NULL:
                    Py_DECREF(<object>record)
                    raise RuntimeError("LZ4 could not compress a page")
            finally:
                PyBuffer_Release(&pages)
        finally:
            PyBuffer_Release(&numbers)
    finally:
        PyBuffer_Release(&head)
    _PyBytes_Resize(&record, end - start)
    result = <object>record
    Py_DECREF(result)
    return result
