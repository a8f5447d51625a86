# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: extra_compile_args = -O3
"""SQLite's WAL checksum, and frames made from pages; walcursor.pyi documents the functions."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the WAL kernels read words as little-endian"
    #endif

    static inline void put_be32(uint8_t *p, uint32_t v) {
        v = __builtin_bswap32(v);
        memcpy(p, &v, 4);
    }
    /* The two sums feed each other, so words cannot be taken in parallel; two additions per 8 bytes are on the
       critical path, everything else overlaps with them. */
    #define WAL_SUM(WORD)                                   \\
        for (; p < end; p += 8) {                           \\
            uint32_t w[2];                                  \\
            memcpy(w, p, 8);                                \\
            a = (a + WORD(w[0])) + b;                       \\
            b = (b + WORD(w[1])) + a;                       \\
        }
    static void wal_sum_words(const uint8_t *p, size_t n, int big, uint32_t *c1, uint32_t *c2) {
        const uint8_t *end = p + n;
        uint32_t a = *c1, b = *c2;
        if (big) { WAL_SUM(__builtin_bswap32) } else { WAL_SUM() }
        *c1 = a;
        *c2 = b;
    }
    """
    void put_be32(uint8_t* p, uint32_t v) nogil
    void wal_sum_words(const uint8_t* p, size_t n, bint big, uint32_t* c1, uint32_t* c2) nogil

cdef enum:
    FRAME_HEADER = 24
    GIL_BYTES = 16384  # less work than this is done with the GIL held: dropping it costs more

cdef void wal_sum(const uint8_t* p, size_t n, bint big, uint32_t* c1, uint32_t* c2) noexcept nogil:
    wal_sum_words(p, n, big, c1, c2)


cdef class View:
    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.buffer, PyBUF_SIMPLE)
        self.p = <const uint8_t*>self.buffer.buf
        self.n = self.buffer.len

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)


def wal_checksum(data, uint32_t c1, uint32_t c2, bint big_endian):
    cdef View view = View(data)
    cdef size_t n = view.n
    cdef const uint8_t* p = view.p
    if n % 8:
        raise ValueError(f"WAL checksum over {n} bytes, not a multiple of 8")
    if n > GIL_BYTES:
        with nogil:
            wal_sum(p, n, big_endian, &c1, &c2)
    else:
        wal_sum(p, n, big_endian, &c1, &c2)
    return c1, c2


cdef void write_frames(uint8_t* out, const uint8_t* numbers, const uint8_t* pages, size_t n, size_t page_size,
                       uint32_t salt1, uint32_t salt2, uint32_t* c1, uint32_t* c2, uint32_t commit,
                       bint big) noexcept nogil:
    cdef size_t i
    cdef uint32_t pgno
    for i in range(n):
        memcpy(&pgno, numbers + 4 * i, 4)
        put_be32(out, pgno)
        put_be32(out + 4, commit if i == n - 1 else 0)
        put_be32(out + 8, salt1)
        put_be32(out + 12, salt2)
        memcpy(out + FRAME_HEADER, pages + i * page_size, page_size)
        wal_sum(out, 8, big, c1, c2)
        wal_sum(out + FRAME_HEADER, page_size, big, c1, c2)
        put_be32(out + 16, c1[0])
        put_be32(out + 20, c2[0])
        out += FRAME_HEADER + page_size


def build_frames(pgnos, images, uint32_t page_size, uint32_t salt1,
                 uint32_t salt2, uint32_t c1, uint32_t c2, uint32_t commit, bint big_endian):
    cdef View number_view = View(pgnos), image_view = View(images)
    cdef size_t n = number_view.n // 4, i, frame_size = FRAME_HEADER + page_size
    if not is_page_size(page_size):
        raise ValueError(f"page size {page_size}")
    if number_view.n % 4 or image_view.n != n * page_size:
        raise ValueError(f"{number_view.n} bytes of page numbers, {image_view.n} bytes of pages")
    frames = PyBytes_FromStringAndSize(NULL, n * frame_size)
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(frames)
    cdef const uint8_t* numbers = number_view.p
    cdef const uint8_t* pages = image_view.p
    cdef uint32_t pgno
    for i in range(n):
        memcpy(&pgno, numbers + 4 * i, 4)
        if pgno == 0:
            raise ValueError("page number 0")
    if n * frame_size > GIL_BYTES:
        with nogil:
            write_frames(out, numbers, pages, n, page_size, salt1, salt2, &c1, &c2, commit, big_endian)
    else:
        write_frames(out, numbers, pages, n, page_size, salt1, salt2, &c1, &c2, commit, big_endian)
    return frames, c1, c2
