from libc.stdint cimport uint8_t, uint64_t

# Finished values in and out, like zlib's crc32: crc64_update(crc64_update(0, a), b) is the CRC of a and b joined.
cdef uint64_t crc64_update(uint64_t crc, const uint8_t* p, size_t n) noexcept nogil
