# cython: language_level=3, boundscheck=False, wraparound=False
"""Lay page indexes of LTX files over one another: where the newest image of each page lies."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from litefs._core.ltxbytes cimport END_BYTES, HEADER_BYTES, NOGIL_BYTES, get_uvarint
from litefs._core.pagedecode import BlockError


cdef Py_ssize_t _lay(
    const uint8_t* start, const uint8_t* end, uint64_t offset, uint64_t* offsets, uint32_t* sizes,
    uint32_t* pieces, uint32_t piece, uint64_t limit, uint64_t* fault
) noexcept nogil:
    """Pages laid; -1 if the index is damaged, at ``fault``."""
    cdef const uint8_t* p = start
    cdef const uint8_t* q
    cdef uint64_t pgno, where, size, last = 0, after = HEADER_BYTES
    cdef Py_ssize_t laid = 0
    while True:
        fault[0] = offset + <uint64_t>(p - start)
        q = get_uvarint(p, end, &pgno)
        if q is not NULL and pgno == 0:
            return laid if q == end else -1
        if q is not NULL:
            q = get_uvarint(q, end, &where)
        if q is not NULL:
            q = get_uvarint(q, end, &size)
        # frames follow each other without a gap, and the end mark follows them
        if q is NULL or pgno <= last or pgno >> 32 or where != after:
            return -1
        if size <= END_BYTES or size >> 32 or where + size + END_BYTES > offset:
            return -1
        if pgno <= limit and sizes[pgno - 1] == 0:
            offsets[pgno - 1] = where
            sizes[pgno - 1] = <uint32_t>size
            pieces[pgno - 1] = piece
            laid += 1
        last = pgno
        after = where + size
        p = q


def lay_index(index, uint64_t offset, offsets, sizes, pieces, uint32_t piece, uint64_t limit):
    cdef Py_buffer data, o, s, w
    cdef Py_ssize_t laid
    cdef uint64_t fault = 0
    cdef const uint8_t* start
    PyObject_GetBuffer(index, &data, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(offsets, &o, PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(sizes, &s, PyBUF_WRITABLE)
            try:
                PyObject_GetBuffer(pieces, &w, PyBUF_WRITABLE)
                try:
                    if <uint64_t>o.len < limit * 8 or <uint64_t>s.len < limit * 4 or <uint64_t>w.len < limit * 4:
                        raise ValueError(f"no place for {limit} pages")
                    start = <const uint8_t*>data.buf
                    if data.len < NOGIL_BYTES:
                        laid = _lay(start, start + data.len, offset, <uint64_t*>o.buf, <uint32_t*>s.buf,
                                    <uint32_t*>w.buf, piece, limit, &fault)
                    else:
                        with nogil:
                            laid = _lay(start, start + data.len, offset, <uint64_t*>o.buf, <uint32_t*>s.buf,
                                        <uint32_t*>w.buf, piece, limit, &fault)
                finally:
                    PyBuffer_Release(&w)
            finally:
                PyBuffer_Release(&s)
        finally:
            PyBuffer_Release(&o)
    finally:
        PyBuffer_Release(&data)
    if laid < 0:
        raise BlockError("the page index is damaged", fault, False)
    return laid
