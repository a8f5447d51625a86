from libc.stdint cimport uint8_t, uint32_t, uint64_t

# The page checksum of LTX: bit 63 | CRC-64/ISO(pgno as big-endian u32, then the page's n bytes).
cdef uint64_t page_sum(uint32_t pgno, const uint8_t* page, size_t n) noexcept nogil
