# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: libraries = lz4
"""Decode the page block of an LTX v3 file, whole records in one call, single pages. Layout: pageblock.pyx.

Nothing is read outside the given bytes, whatever they say, and nothing is returned that was not found valid.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

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
    get32_little,
    get64,
    get_uvarint,
    lock_page,
    put_uvarint,
    with_flag,
)

cdef extern from "lz4.h" nogil:
    int LZ4_compressBound(int size)
    int LZ4_decompress_safe(const char* src, char* dst, int size, int capacity)

cdef extern from "lz4frame.h" nogil:
    ctypedef struct LZ4F_dctx:
        pass
    ctypedef struct LZ4F_decompressOptions_t:
        pass
    enum:
        LZ4F_VERSION
    size_t LZ4F_createDecompressionContext(LZ4F_dctx** context, unsigned version)
    size_t LZ4F_freeDecompressionContext(LZ4F_dctx* context)
    size_t LZ4F_decompress(
        LZ4F_dctx* context, void* dst, size_t* dst_size, const void* src, size_t* src_size,
        const LZ4F_decompressOptions_t* options
    )

cdef enum:
    # An LZ4 block grows to at most 255 bytes per byte; a shorter one cannot hold a page.
    LZ4_RATIO = 255
    # What an LZ4 frame may add to the blocks inside it.
    LZ4_FRAME_OVERHEAD = 4096

cdef extern from *:
    """
    /* What decoding knows between two frames, and where it stopped. */
    typedef struct {
        uint32_t page_size, commit, last;
        int full, verify, ended;
        uint64_t crc;
        uint64_t offset;      /* in the file, of the byte at the cursor */
        const char *fault;    /* set when a frame is refused */
        uint64_t fault_offset;
        int is_checksum;
    } block_state;
    typedef struct {
        uint32_t pgno;
        size_t head, size;    /* bytes before the data, bytes of it */
    } frame_info;
    """
    ctypedef struct block_state:
        uint32_t page_size
        uint32_t commit
        uint32_t last
        bint full
        bint verify
        bint ended
        uint64_t crc
        uint64_t offset
        const char* fault
        uint64_t fault_offset
        bint is_checksum
    ctypedef struct frame_info:
        uint32_t pgno
        size_t head
        size_t size


class BlockError(ValueError):
    """Bytes that are not a valid record. ``offset``: where in the file; ``is_checksum``: whether only a checksum."""

    def __init__(self, message, offset, is_checksum):
        super().__init__(f"{message} (at byte {offset})")
        self.offset = offset
        self.is_checksum = is_checksum


cdef int _refuse(block_state* s, const char* fault, uint64_t offset) noexcept nogil:
    s.fault = fault
    s.fault_offset = offset
    return -1


cdef int _lz4_frame_size(const uint8_t* p, size_t avail, size_t limit, size_t* size) noexcept nogil:
    """Bytes of the LZ4 frame at ``p``. Returns 1, 0 if more bytes are needed, -1 if it is none or exceeds ``limit``."""
    cdef size_t at
    cdef uint32_t block
    if avail < 7:
        return 0
    if get32_little(p) != 0x184D2204 or p[4] >> 6 != 1:
        return -1
    at = 7 + (8 if p[4] & 8 else 0) + (4 if p[4] & 1 else 0)
    while at <= limit:
        if avail < at + 4:
            return 0
        block = get32_little(p + at)
        at += 4
        if block == 0:
            size[0] = at + (4 if p[4] & 4 else 0)
            if size[0] > limit:
                return -1
            return 1 if avail >= size[0] else 0
        at += (block & 0x7FFFFFFF) + (4 if p[4] & 16 else 0)
    return -1


cdef int _next_frame(block_state* s, const uint8_t* p, size_t avail, frame_info* frame) noexcept nogil:
    """Look at the frame at ``p``, or the end of the frames. Returns 1, 0 if more bytes are needed, -1 if refused.

    Does not move ``s`` on, except that it sets ``ended``.
    """
    cdef uint32_t flags, lock = lock_page(s.page_size)
    cdef uint32_t expected
    cdef size_t bound = <size_t>LZ4_compressBound(<int>s.page_size)
    cdef int found
    if avail < END_BYTES:
        return 0
    frame.pgno = get32(p)
    flags = (<uint32_t>p[4] << 8) | p[5]
    if frame.pgno == 0:
        if flags != 0:
            return _refuse(s, b"page number 0", s.offset)
        if s.full:
            expected = s.commit - 1 if s.commit == lock else s.commit
            if s.last != expected:
                return _refuse(s, b"pages are missing at the end of a full record", s.offset)
        s.ended = True
        frame.head = END_BYTES
        frame.size = 0
        return 1
    if frame.pgno <= s.last:
        return _refuse(s, b"page number does not ascend", s.offset)
    if frame.pgno > s.commit:
        return _refuse(s, b"page number beyond the database size", s.offset)
    if frame.pgno == lock:
        return _refuse(s, b"the lock page is present", s.offset)
    expected = s.last + 1
    if expected == lock:
        expected += 1
    if s.full and frame.pgno != expected:
        return _refuse(s, b"a page is missing in a full record", s.offset)
    if flags == 1:
        if avail < FRAME_BYTES:
            return 0
        frame.head = FRAME_BYTES
        frame.size = get32(p + 6)
        if frame.size * LZ4_RATIO < s.page_size or frame.size > bound:
            return _refuse(s, b"impossible size of compressed page", s.offset + 6)
    elif flags == 0:
        frame.head = END_BYTES
        found = _lz4_frame_size(p + END_BYTES, avail - END_BYTES, bound + LZ4_FRAME_OVERHEAD, &frame.size)
        if found < 0:
            return _refuse(s, b"not an LZ4 frame of one page", s.offset + END_BYTES)
        if found == 0:
            return 0
    else:
        return _refuse(s, b"unknown page flags", s.offset + 4)
    return 1 if avail >= frame.head + frame.size else 0


cdef int _unpack_lz4_frame(const uint8_t* p, size_t size, uint8_t* page, size_t page_size) noexcept nogil:
    """Whether the LZ4 frame holds exactly one page (its own checksums are verified)."""
    cdef LZ4F_dctx* context = NULL
    cdef size_t source = size, written = page_size, left
    cdef uint8_t[1] spill
    cdef size_t extra = 0, more
    if LZ4F_createDecompressionContext(&context, LZ4F_VERSION) != 0:
        return 0
    left = LZ4F_decompress(context, page, &written, p, &source, NULL)
    if left != 0 and written == page_size and source < size:
        # The page is there; the rest must be end mark and checksum, without a byte more of data.
        extra = 1
        more = size - source
        left = LZ4F_decompress(context, spill, &extra, p + source, &more, NULL)
        source += more
    LZ4F_freeDecompressionContext(context)
    return left == 0 and written == page_size and extra == 0 and source == size


cdef int _unpack_page(block_state* s, const uint8_t* p, frame_info* frame, uint8_t* page) noexcept nogil:
    """Decompress the frame's page and move ``s`` past it. Returns 1, or -1 if refused."""
    cdef int n
    if frame.head == FRAME_BYTES:
        n = LZ4_decompress_safe(<const char*>p + FRAME_BYTES, <char*>page, <int>frame.size, <int>s.page_size)
        if n < 0:
            return _refuse(s, b"LZ4 block is damaged", s.offset + FRAME_BYTES)
        if <uint32_t>n != s.page_size:
            return _refuse(s, b"LZ4 block is shorter than a page", s.offset + FRAME_BYTES)
    elif not _unpack_lz4_frame(p + frame.head, frame.size, page, s.page_size):
        return _refuse(s, b"LZ4 frame is damaged or not one page", s.offset + frame.head)
    if s.verify:
        s.crc = crc64_update(crc64_update(s.crc, p, frame.head), page, s.page_size)
    s.last = frame.pgno
    s.offset += frame.head + frame.size
    return 1


cdef object _error(block_state* s):
    return BlockError(s.fault.decode("ascii"), s.fault_offset, s.is_checksum)


cdef Py_ssize_t _count_frames(block_state* s, const uint8_t* p, size_t size) noexcept nogil:
    """Frames before the end mark; -1 if refused. ``s`` is a copy that may be spent."""
    cdef Py_ssize_t count = 0
    cdef size_t at = 0
    cdef frame_info frame
    cdef int found
    while True:
        found = _next_frame(s, p + at, size - at, &frame)
        if found < 0:
            return -1
        if found == 0:
            return _refuse(s, b"the record ends inside its pages", s.offset)
        if s.ended:
            return count
        s.last = frame.pgno
        s.offset += frame.head + frame.size
        at += frame.head + frame.size
        count += 1


cdef int _decode_whole(
    block_state* s, const uint8_t* record, size_t size, Py_ssize_t count, uint32_t* pgnos, uint8_t* images
) noexcept nogil:
    """Pages, index and trailer of a record whose frames were counted. Returns 1, or -1 if refused."""
    cdef const uint8_t* p = record + HEADER_BYTES
    cdef const uint8_t* tail = record + size - TRAILER_BYTES
    cdef const uint8_t* index
    cdef const uint8_t* end
    cdef const uint8_t* start
    cdef frame_info frame
    cdef Py_ssize_t i
    cdef uint64_t at, value, where, length
    s.crc = crc64_update(0, record, HEADER_BYTES) if s.verify else 0
    for i in range(count):
        # Only the frame's shape is of interest: it was found valid when counting.
        if _next_frame(s, p, <size_t>(tail - p), &frame) != 1:
            return -1
        pgnos[i] = frame.pgno
        if _unpack_page(s, p, &frame, images + i * <Py_ssize_t>s.page_size) < 0:
            return -1
        p += frame.head + frame.size
    end = p
    index = start = p + END_BYTES
    p = record + HEADER_BYTES
    at = HEADER_BYTES
    s.last = 0
    for i in range(count):
        _next_frame(s, p, <size_t>(tail - p), &frame)
        s.last = frame.pgno
        index = get_uvarint(index, tail, &value)
        if index is not NULL and value == frame.pgno:
            index = get_uvarint(index, tail, &where)
            if index is not NULL and where == at:
                index = get_uvarint(index, tail, &length)
                if index is not NULL and length == frame.head + frame.size:
                    p += length
                    at += length
                    continue
        return _refuse(s, b"the page index does not fit the pages", <uint64_t>(start - record))
    if index >= tail or index[0] != 0:
        return _refuse(s, b"the page index does not end after its last page", <uint64_t>(index - record))
    index += 1
    if tail - index != 8 or get64(index) != <uint64_t>(index - start):
        return _refuse(s, b"wrong length of the page index, or bytes after the record", <uint64_t>(index - record))
    if s.verify:
        s.crc = crc64_update(s.crc, end, <size_t>(tail + 8 - end))
        if get64(tail + 8) != with_flag(s.crc):
            s.is_checksum = True
            return _refuse(s, b"wrong checksum of the record", size - 8)
    return 1


def decode_record(record, bint verify=True):
    cdef Py_buffer view
    cdef block_state s, walk
    cdef const uint8_t* p
    cdef size_t size
    cdef Py_ssize_t count
    cdef uint32_t* numbers
    cdef uint8_t* pages
    cdef int done
    PyObject_GetBuffer(record, &view, PyBUF_SIMPLE)
    try:
        size = <size_t>view.len
        p = <const uint8_t*>view.buf
        if size < HEADER_BYTES + END_BYTES + 9 + TRAILER_BYTES:
            raise BlockError(f"a record of {size} bytes is too short", size, False)
        memset(&s, 0, sizeof(s))
        s.page_size = get32(p + 8)
        check_page_size(s.page_size)
        s.commit = get32(p + 12)
        s.full = get64(p + 16) == 1
        s.verify = verify
        s.offset = HEADER_BYTES
        walk = s
        count = _count_frames(&walk, p + HEADER_BYTES, size - HEADER_BYTES - TRAILER_BYTES)
        if count < 0:
            raise _error(&walk)
        pgnos = PyBytes_FromStringAndSize(NULL, count * 4)
        images = PyByteArray_FromStringAndSize(NULL, count * s.page_size)
        numbers = <uint32_t*>PyBytes_AS_STRING(pgnos)
        pages = <uint8_t*>PyByteArray_AS_STRING(images)
        if count * s.page_size < NOGIL_BYTES:
            done = _decode_whole(&s, p, size, count, numbers, pages)
        else:
            with nogil:
                done = _decode_whole(&s, p, size, count, numbers, pages)
        if done < 0:
            raise _error(&s)
        return pgnos, images, get64(p + size - 16), get64(p + size - 8)
    finally:
        PyBuffer_Release(&view)


def decode_pages(
    data, Py_ssize_t start, uint64_t offset, uint32_t page_size, uint32_t commit, uint32_t last_pgno, bint full,
    Py_ssize_t max_pages, uint64_t crc, bint verify=True
):
    cdef Py_buffer view
    cdef block_state s
    cdef frame_info frame
    cdef const uint8_t* p
    cdef size_t avail
    cdef Py_ssize_t count = 0
    cdef uint32_t* numbers
    cdef uint8_t* pages
    cdef uint8_t* entries
    cdef uint8_t* entry
    cdef int found = 1
    check_page_size(page_size)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if not 0 <= start <= view.len or max_pages < 1:
            raise ValueError("start lies outside the data, or no page is asked for")
        memset(&s, 0, sizeof(s))
        s.page_size, s.commit, s.last, s.full, s.verify = page_size, commit, last_pgno, full, verify
        s.crc, s.offset = crc, offset
        pgnos = bytearray(max_pages * 4)
        images = PyByteArray_FromStringAndSize(NULL, max_pages * page_size)
        index = bytearray(max_pages * INDEX_ENTRY_BYTES)
        numbers = <uint32_t*>PyByteArray_AS_STRING(pgnos)
        pages = <uint8_t*>PyByteArray_AS_STRING(images)
        entries = entry = <uint8_t*>PyByteArray_AS_STRING(index)
        p = <const uint8_t*>view.buf + start
        avail = <size_t>(view.len - start)
        with nogil:
            while count < max_pages:
                found = _next_frame(&s, p, avail, &frame)
                if found != 1 or s.ended:
                    break
                numbers[count] = frame.pgno
                entry = put_uvarint(put_uvarint(put_uvarint(entry, frame.pgno), s.offset), frame.head + frame.size)
                found = _unpack_page(&s, p, &frame, pages + count * <Py_ssize_t>page_size)
                if found < 0:
                    break
                p += frame.head + frame.size
                avail -= frame.head + frame.size
                count += 1
        if found < 0:
            raise _error(&s)
        if count < max_pages:
            del pgnos[count * 4:]
            del images[count * page_size:]
        del index[entry - entries:]
        return bytes(pgnos), images, bytes(index), s.offset - offset, s.crc, bool(s.ended)
    finally:
        PyBuffer_Release(&view)


def decode_page(data, uint32_t page_size):
    cdef Py_buffer view
    cdef block_state s
    cdef frame_info frame
    check_page_size(page_size)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        memset(&s, 0, sizeof(s))
        s.page_size = page_size
        s.commit = 0xFFFFFFFF
        if _next_frame(&s, <const uint8_t*>view.buf, <size_t>view.len, &frame) != 1 or s.ended:
            raise _error(&s) if s.fault is not NULL else BlockError("no whole page frame", 0, False)
        if frame.head + frame.size != <size_t>view.len:
            raise BlockError("bytes after the page frame", frame.head + frame.size, False)
        page = PyBytes_FromStringAndSize(NULL, page_size)
        if _unpack_page(&s, <const uint8_t*>view.buf, &frame, <uint8_t*>PyBytes_AS_STRING(page)) < 0:
            raise _error(&s)
        return frame.pgno, page
    finally:
        PyBuffer_Release(&view)


def parse_index(data, uint64_t offset=0):
    cdef Py_buffer view
    cdef const uint8_t* start
    cdef const uint8_t* p
    cdef const uint8_t* q
    cdef const uint8_t* end
    cdef uint64_t pgno, where, size
    entries = []
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        start = p = <const uint8_t*>view.buf
        end = p + view.len
        while True:
            q = get_uvarint(p, end, &pgno)
            if q is not NULL and pgno == 0:
                break
            if q is not NULL:
                q = get_uvarint(q, end, &where)
            if q is not NULL:
                q = get_uvarint(q, end, &size)
            if q is NULL or pgno > 0xFFFFFFFF:
                raise BlockError("the page index is damaged", offset + <uint64_t>(p - start), False)
            p = q
            entries.append((pgno, where, size))
        if q != end:
            raise BlockError("bytes after the page index", offset + <uint64_t>(q - start), False)
        return entries
    finally:
        PyBuffer_Release(&view)
