from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef struct Frame:
    uint32_t pgno
    uint32_t commit
    uint32_t c1  # running checksum after the frame
    uint32_t c2

cdef class Transaction:
    cdef readonly uint32_t commit
    cdef readonly int64_t first_frame, last_frame
    cdef readonly bytes frame_pgnos, pgnos, offsets
    cdef readonly object images

# The n frames that follow `logged` others and begin at `offset` of the file; `data`: their bytes, NULL if unknown.
cdef Transaction make_transaction(const Frame* frames, int64_t n, int64_t logged, int64_t offset,
                                  int64_t page_size, const uint8_t* data)
