from libc.stdint cimport int64_t, uint32_t, uint64_t

# get and set are macros over a field: relaxed atomic loads and stores, one name per type for Cython's sake.
cdef extern from "pagesums_impl.h":
    ctypedef struct sums_header:
        char* magic
        uint32_t page_size
        uint32_t page_count
        uint64_t seq
        uint64_t txid
        uint64_t checksum
        int64_t timestamp
        uint64_t durable_txid
        uint64_t synced_txid
        uint32_t clean
        int64_t file_size
        int64_t file_mtime
        int64_t file_ctime
        uint32_t wal_salt1
        uint32_t wal_salt2
        uint32_t wal_frames
        uint32_t damaged
        uint64_t hash
    uint32_t get32 "sums_get"(uint32_t field) nogil
    uint64_t get64 "sums_get"(uint64_t field) nogil
    int64_t geti64 "sums_get"(int64_t field) nogil
    void set32 "sums_set"(uint32_t field, uint32_t value) nogil
    void set64 "sums_set"(uint64_t field, uint64_t value) nogil
    void seti64 "sums_set"(int64_t field, int64_t value) nogil
    void sums_enter(sums_header* h) nogil
    void sums_leave(sums_header* h) nogil
    uint64_t sums_read_begin(sums_header* h) nogil
    int sums_read_valid(sums_header* h, uint64_t seq) nogil
    uint64_t sums_now_ns() nogil
    int sched_yield() nogil
