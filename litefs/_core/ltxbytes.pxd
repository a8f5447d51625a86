# What encoder and decoder of LTX share: sizes, big-endian integers, uvarints, the limits of a page size.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    HEADER_BYTES = 100
    TRAILER_BYTES = 16
    END_BYTES = 6
    FRAME_BYTES = 10
    # An index entry at most: u32, u64 and u32 as uvarints.
    INDEX_ENTRY_BYTES = 20
    # Below this the GIL is kept: getting it back from a busy thread can cost milliseconds.
    NOGIL_BYTES = 65536
    # Bit 63 of every checksum, shifted there by with_flag: an enum cannot hold it.
    FLAG_BIT = 63


cdef inline uint64_t with_flag(uint64_t crc) noexcept nogil:
    return crc | (<uint64_t>1 << FLAG_BIT)


cdef inline void put32(uint8_t* p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 24)
    p[1] = <uint8_t>(v >> 16)
    p[2] = <uint8_t>(v >> 8)
    p[3] = <uint8_t>v


cdef inline void put64(uint8_t* p, uint64_t v) noexcept nogil:
    put32(p, <uint32_t>(v >> 32))
    put32(p + 4, <uint32_t>v)


cdef inline uint32_t get32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t get64(const uint8_t* p) noexcept nogil:
    return (<uint64_t>get32(p) << 32) | get32(p + 4)


cdef inline uint32_t get32_little(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[3] << 24) | (<uint32_t>p[2] << 16) | (<uint32_t>p[1] << 8) | p[0]


cdef inline uint8_t* put_uvarint(uint8_t* p, uint64_t v) noexcept nogil:
    while v >= 0x80:
        p[0] = <uint8_t>(v | 0x80)
        v >>= 7
        p += 1
    p[0] = <uint8_t>v
    return p + 1


cdef inline const uint8_t* get_uvarint(const uint8_t* p, const uint8_t* end, uint64_t* v) noexcept nogil:
    """The byte after it; NULL if it does not end before ``end`` or exceeds 64 bits."""
    cdef int shift = 0
    cdef uint8_t byte
    cdef uint64_t value = 0
    while p < end and shift < 64:
        byte = p[0]
        p += 1
        if shift == 63 and byte > 1:
            return NULL
        value |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            v[0] = value
            return p
        shift += 7
    return NULL


cdef inline uint32_t lock_page(uint32_t page_size) noexcept nogil:
    return 0x40000000 // page_size + 1


cdef inline int check_page_size(Py_ssize_t page_size) except -1:
    if page_size < 512 or page_size > 65536 or page_size & (page_size - 1):
        raise ValueError(f"page size {page_size} is not a power of two from 512 to 65536")
    return 0
