# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: depends = litefs/_core/pagesums_impl.h
"""Page checksums, and the array of them that both processes of a node map (ARCHITECTURE.md, "sums").

One process writes the array, any number read it. The fields that belong together change under a sequence lock: the
writer makes ``seq`` odd, changes them, makes it even; a reader copies them and starts again if ``seq`` was odd or moved.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from litefs._core.crc64 cimport crc64_update
from litefs._core.pagesums_impl cimport (
    get32,
    get64,
    geti64,
    sched_yield,
    set32,
    set64,
    seti64,
    sums_enter,
    sums_header,
    sums_leave,
    sums_now_ns,
    sums_read_begin,
    sums_read_valid,
)

cdef enum:
    HEADER_BYTES = 4096
    NOGIL_BYTES = 65536
    # Reads that fail before the reader gives the CPU away: the writer is inside for microseconds.
    SPINS = 200

cdef uint64_t FLAG = <uint64_t>1 << 63
cdef uint64_t READ_LIMIT_NS = 1000000000
cdef bytes MAGIC = b"LFSUMS1\0"

HEADER_SIZE = HEADER_BYTES


cdef inline uint64_t page_sum(uint32_t pgno, const uint8_t* page, size_t n) noexcept nogil:
    cdef uint8_t[4] number
    number[0] = <uint8_t>(pgno >> 24)
    number[1] = <uint8_t>(pgno >> 16)
    number[2] = <uint8_t>(pgno >> 8)
    number[3] = <uint8_t>pgno
    return FLAG | crc64_update(crc64_update(0, number, 4), page, n)


cdef inline void set_position(
    sums_header* h, uint32_t page_count, uint64_t txid, uint64_t post, int64_t timestamp, uint64_t hash
) noexcept nogil:
    """Between ``sums_enter`` and ``sums_leave``."""
    set32(h.page_count, page_count)
    set64(h.txid, txid)
    set64(h.checksum, post)
    seti64(h.timestamp, timestamp)
    set64(h.hash, hash)


cdef inline uint32_t lock_page(uint32_t page_size) noexcept nogil:
    return 0x40000000 // page_size + 1


cdef int _check_page_size(Py_ssize_t page_size) except -1:
    if page_size < 512 or page_size > 65536 or page_size & (page_size - 1):
        raise ValueError(f"page size {page_size} is not a power of two from 512 to 65536")
    return 0


cdef int _check_pgnos(const uint32_t* pgnos, Py_ssize_t n, uint32_t page_size) except -1:
    """Page numbers are aligned, ascend strictly from 1 on and skip the lock page."""
    cdef Py_ssize_t i
    cdef uint32_t last = 0, lock = lock_page(page_size)
    if n and <size_t>pgnos % 4:
        raise ValueError("the page numbers are not aligned to 4 bytes")
    for i in range(n):
        if pgnos[i] <= last:
            raise ValueError(f"page {pgnos[i]} does not follow page {last}")
        if pgnos[i] == lock:
            raise ValueError(f"page {lock} is the lock page")
        last = pgnos[i]
    return 0


cdef void _sum_pages(
    const uint32_t* pgnos, const uint8_t* images, Py_ssize_t n, uint32_t page_size, uint64_t* out
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = page_sum(pgnos[i], images + i * <Py_ssize_t>page_size, page_size)


def page_checksum(uint32_t pgno, page):
    cdef Py_buffer view
    cdef uint64_t result
    PyObject_GetBuffer(page, &view, PyBUF_SIMPLE)
    result = page_sum(pgno, <const uint8_t*>view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return result


def page_checksums(uint32_t first_pgno, data, uint32_t page_size):
    cdef Py_buffer view
    cdef Py_ssize_t i, n
    cdef uint32_t lock
    cdef uint64_t* out
    _check_page_size(page_size)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        n = view.len // page_size
        if view.len % page_size or first_pgno == 0 or n > 0x100000000 - first_pgno:
            raise ValueError(f"{view.len} bytes from page {first_pgno} are not whole pages of {page_size} bytes")
        result = PyBytes_FromStringAndSize(NULL, n * 8)
        out = <uint64_t*>PyBytes_AS_STRING(result)
        lock = lock_page(page_size)
        with nogil:
            for i in range(n):
                out[i] = page_sum(
                    <uint32_t>(first_pgno + i), <const uint8_t*>view.buf + i * <Py_ssize_t>page_size, page_size
                )
            if first_pgno <= lock < first_pgno + n:
                out[lock - first_pgno] = 0
    finally:
        PyBuffer_Release(&view)
    return result


def checksums_of(pgnos, images, uint32_t page_size):
    cdef Py_buffer numbers, pages
    cdef Py_ssize_t n
    cdef uint64_t* out
    _check_page_size(page_size)
    PyObject_GetBuffer(pgnos, &numbers, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(images, &pages, PyBUF_SIMPLE)
        try:
            n = numbers.len // 4
            if numbers.len % 4 or pages.len != n * page_size:
                raise ValueError(
                    f"{numbers.len} bytes of page numbers do not fit {pages.len} bytes of {page_size}-byte pages"
                )
            _check_pgnos(<const uint32_t*>numbers.buf, n, page_size)
            result = PyBytes_FromStringAndSize(NULL, n * 8)
            out = <uint64_t*>PyBytes_AS_STRING(result)
            if pages.len >= NOGIL_BYTES:
                with nogil:
                    _sum_pages(<const uint32_t*>numbers.buf, <const uint8_t*>pages.buf, n, page_size, out)
            else:
                _sum_pages(<const uint32_t*>numbers.buf, <const uint8_t*>pages.buf, n, page_size, out)
        finally:
            PyBuffer_Release(&pages)
    finally:
        PyBuffer_Release(&numbers)
    return result


cdef class PageSums:
    cdef Py_buffer view
    cdef sums_header* h
    cdef uint64_t* sums
    cdef readonly uint32_t capacity

    def __cinit__(self, buf):
        PyObject_GetBuffer(buf, &self.view, PyBUF_WRITABLE)
        if self.view.len < HEADER_BYTES or <size_t>self.view.buf % 8:
            length = self.view.len
            PyBuffer_Release(&self.view)
            raise ValueError(f"a buffer of {length} bytes is too small or not aligned to 8 bytes")
        self.h = <sums_header*>self.view.buf
        self.sums = <uint64_t*>(<char*>self.view.buf + HEADER_BYTES)
        self.capacity = <uint32_t>min((self.view.len - HEADER_BYTES) // 8, 0xFFFFFFFE)

    def __dealloc__(self):
        if self.h is not NULL:
            PyBuffer_Release(&self.view)

    def release(self):
        if self.h is not NULL:
            self.h = NULL
            PyBuffer_Release(&self.view)

    cdef sums_header* header(self) except NULL:
        if self.h is NULL:
            raise ValueError("these page checksums were released")
        return self.h

    @property
    def formatted(self):
        cdef sums_header* h = self.header()
        cdef uint32_t page_size = get32(h.page_size)
        return (<char*>h)[:8] == MAGIC and (
            page_size == 0 or (512 <= page_size <= 65536 and page_size & (page_size - 1) == 0)
        )

    def format(self, uint32_t page_size):
        cdef sums_header* h = self.header()
        if page_size:
            _check_page_size(page_size)
        sums_enter(h)
        memset(<char*>h + 24, 0, HEADER_BYTES - 24)
        memset(self.sums, 0, <size_t>self.capacity * 8)
        memcpy(h, <const char*>MAGIC, 8)
        set32(h.page_size, page_size)
        set32(h.page_count, 0)
        sums_leave(h)

    # --- single fields -------------------------------------------------------------------------------------------

    @property
    def page_size(self):
        return get32(self.header().page_size)

    @page_size.setter
    def page_size(self, uint32_t value):
        _check_page_size(value)
        set32(self.header().page_size, value)

    @property
    def page_count(self):
        return get32(self.header().page_count)

    @property
    def txid(self):
        return get64(self.header().txid)

    @property
    def checksum(self):
        return get64(self.header().checksum)

    @property
    def hash(self):
        return get64(self.header().hash)

    @property
    def timestamp(self):
        return geti64(self.header().timestamp)

    @property
    def durable_txid(self):
        return get64(self.header().durable_txid)

    @durable_txid.setter
    def durable_txid(self, uint64_t value):
        set64(self.header().durable_txid, value)

    @property
    def synced_txid(self):
        return get64(self.header().synced_txid)

    @synced_txid.setter
    def synced_txid(self, uint64_t value):
        set64(self.header().synced_txid, value)

    @property
    def clean(self):
        return get32(self.header().clean) != 0

    @clean.setter
    def clean(self, bint value):
        set32(self.header().clean, value)

    @property
    def damaged(self):
        return get32(self.header().damaged) != 0

    @damaged.setter
    def damaged(self, bint value):
        set32(self.header().damaged, value)

    @property
    def database_stat(self):
        cdef sums_header* h = self.header()
        return (geti64(h.file_size), geti64(h.file_mtime), geti64(h.file_ctime))

    @database_stat.setter
    def database_stat(self, value):
        cdef sums_header* h = self.header()
        cdef int64_t size, mtime, ctime
        size, mtime, ctime = value
        seti64(h.file_size, size)
        seti64(h.file_mtime, mtime)
        seti64(h.file_ctime, ctime)

    @property
    def wal_salt1(self):
        return get32(self.header().wal_salt1)

    @wal_salt1.setter
    def wal_salt1(self, uint32_t value):
        set32(self.header().wal_salt1, value)

    @property
    def wal_salt2(self):
        return get32(self.header().wal_salt2)

    @wal_salt2.setter
    def wal_salt2(self, uint32_t value):
        set32(self.header().wal_salt2, value)

    @property
    def wal_frames(self):
        return get32(self.header().wal_frames)

    @wal_frames.setter
    def wal_frames(self, uint32_t value):
        set32(self.header().wal_frames, value)

    # --- groups of fields, under the sequence lock ---------------------------------------------------------------

    def set_wal(self, uint32_t salt1, uint32_t salt2, uint32_t frames):
        cdef sums_header* h = self.header()
        sums_enter(h)
        set32(h.wal_salt1, salt1)
        set32(h.wal_salt2, salt2)
        set32(h.wal_frames, frames)
        sums_leave(h)

    cdef sums_header _read(self) except *:
        """A copy of the header that no writer was inside of."""
        cdef sums_header copy
        cdef sums_header* h = self.header()
        cdef uint64_t seq, limit = 0
        cdef int attempts = 0
        while True:
            seq = sums_read_begin(h)
            copy.page_size = get32(h.page_size)
            copy.page_count = get32(h.page_count)
            copy.txid = get64(h.txid)
            copy.checksum = get64(h.checksum)
            copy.timestamp = geti64(h.timestamp)
            copy.hash = get64(h.hash)
            copy.wal_salt1 = get32(h.wal_salt1)
            copy.wal_salt2 = get32(h.wal_salt2)
            copy.wal_frames = get32(h.wal_frames)
            if sums_read_valid(h, seq):
                return copy
            attempts += 1
            if attempts < SPINS:
                continue
            if limit == 0:
                limit = sums_now_ns() + READ_LIMIT_NS
            elif sums_now_ns() > limit:
                raise TimeoutError("the writer of the page checksums stopped inside an update")
            with nogil:
                sched_yield()

    def snapshot(self):
        cdef sums_header copy = self._read()
        return (copy.txid, copy.checksum, copy.timestamp, copy.page_size, copy.page_count, copy.hash)

    def wal(self):
        cdef sums_header copy = self._read()
        return (copy.wal_salt1, copy.wal_salt2, copy.wal_frames)

    # --- the array -----------------------------------------------------------------------------------------------

    def get(self, uint32_t pgno):
        self.header()
        return get64(self.sums[pgno - 1]) if 0 < pgno <= self.capacity else 0

    def matches(self, uint32_t pgno, page):
        cdef Py_buffer view
        cdef uint64_t sum
        self.header()
        if not 0 < pgno <= self.capacity:
            return False
        PyObject_GetBuffer(page, &view, PyBUF_SIMPLE)
        sum = page_sum(pgno, <const uint8_t*>view.buf, <size_t>view.len)
        PyBuffer_Release(&view)
        return get64(self.sums[pgno - 1]) == sum

    cdef int _check_range(self, Py_ssize_t first_pgno, Py_ssize_t n) except -1:
        if first_pgno < 1 or n < 0 or first_pgno - 1 + n > self.capacity:
            raise ValueError(f"{n} pages from page {first_pgno} are not within 1..{self.capacity}")
        return 0

    def array(self, Py_ssize_t first_pgno, Py_ssize_t n):
        self.header()
        self._check_range(first_pgno, n)
        return PyBytes_FromStringAndSize(<char*>(self.sums + first_pgno - 1), n * 8)

    def load(self, Py_ssize_t first_pgno, sums_bytes):
        cdef Py_buffer view
        self.header()
        PyObject_GetBuffer(sums_bytes, &view, PyBUF_SIMPLE)
        try:
            if view.len % 8:
                raise ValueError(f"{view.len} bytes are not whole 8-byte checksums")
            self._check_range(first_pgno, view.len // 8)
            memcpy(self.sums + first_pgno - 1, view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def recompute_total(self):
        cdef sums_header* h = self.header()
        cdef uint64_t total = 0
        cdef uint32_t i, n = min(get32(h.page_count), self.capacity)
        with nogil:
            for i in range(n):
                total ^= get64(self.sums[i])
        return FLAG | total

    # --- a transaction -------------------------------------------------------------------------------------------

    def preview(self, pgnos, images, uint32_t commit):
        new = checksums_of(pgnos, images, get32(self.header().page_size))
        return self.post(pgnos, new, commit), new

    def post(self, pgnos, new, uint32_t commit):
        cdef Py_buffer numbers, sums
        PyObject_GetBuffer(pgnos, &numbers, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(new, &sums, PyBUF_SIMPLE)
            try:
                self._check_transaction(&numbers, &sums, commit)
                return self._post(
                    <const uint32_t*>numbers.buf, <const uint64_t*>sums.buf, numbers.len // 4, commit
                )
            finally:
                PyBuffer_Release(&sums)
        finally:
            PyBuffer_Release(&numbers)

    cdef int _check_transaction(self, Py_buffer* numbers, Py_buffer* sums, uint32_t commit) except -1:
        """Numbers ascend to at most ``commit``, and every page that the database grows by is among them."""
        cdef sums_header* h = self.header()
        cdef const uint32_t* pgnos = <const uint32_t*>numbers.buf
        cdef Py_ssize_t n = numbers.len // 4, grown = 0
        cdef uint32_t page_size = get32(h.page_size), before = get32(h.page_count), lock
        if page_size == 0:
            raise ValueError("the page size is not set")
        if numbers.len % 4 or sums.len != n * 8:
            raise ValueError(f"{numbers.len} bytes of page numbers do not fit {sums.len} bytes of checksums")
        if n and <size_t>sums.buf % 8:
            raise ValueError("the checksums are not aligned to 8 bytes")
        _check_pgnos(pgnos, n, page_size)
        if n and pgnos[n - 1] > commit:
            raise ValueError(f"page {pgnos[n - 1]} lies beyond the database's {commit} pages")
        if commit > before:
            lock = lock_page(page_size)
            while grown < n and pgnos[n - 1 - grown] > before:
                grown += 1
            if grown != <Py_ssize_t>(commit - before) - (before < lock <= commit):
                raise ValueError(f"only {grown} of the pages {before + 1} to {commit} are given")
        return 0

    cdef uint64_t _post(self, const uint32_t* pgnos, const uint64_t* new, Py_ssize_t n, uint32_t commit) noexcept:
        cdef sums_header* h = self.h
        cdef uint64_t total = get64(h.checksum)
        cdef uint32_t pgno, before = min(get32(h.page_count), self.capacity)
        cdef Py_ssize_t i
        for i in range(n):
            total ^= new[i]
            if pgnos[i] <= before:
                total ^= get64(self.sums[pgnos[i] - 1])
        for pgno in range(commit + 1, before + 1):
            total ^= get64(self.sums[pgno - 1])
        return FLAG | total

    def commit(
        self, pgnos, new, uint32_t commit, uint64_t txid, uint64_t post, int64_t timestamp, uint64_t hash
    ):
        cdef sums_header* h = self.header()
        cdef Py_buffer numbers, sums
        cdef const uint32_t* pages
        cdef const uint64_t* values
        cdef uint32_t pgno, before = min(get32(h.page_count), self.capacity)
        cdef Py_ssize_t i, n
        if commit > self.capacity:
            raise ValueError(f"{commit} pages, but room for {self.capacity}")
        PyObject_GetBuffer(pgnos, &numbers, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(new, &sums, PyBUF_SIMPLE)
            try:
                self._check_transaction(&numbers, &sums, commit)
                n = numbers.len // 4
                pages = <const uint32_t*>numbers.buf
                values = <const uint64_t*>sums.buf
                sums_enter(h)
                for i in range(n):
                    set64(self.sums[pages[i] - 1], values[i])
                for pgno in range(commit + 1, before + 1):
                    set64(self.sums[pgno - 1], 0)
                set_position(h, commit, txid, post, timestamp, hash)
                sums_leave(h)
            finally:
                PyBuffer_Release(&sums)
        finally:
            PyBuffer_Release(&numbers)

    def replace(
        self, uint32_t page_size, sums_bytes, uint64_t txid, uint64_t post, int64_t timestamp, uint64_t hash
    ):
        cdef sums_header* h = self.header()
        cdef Py_buffer view
        cdef const uint64_t* values
        cdef Py_ssize_t i, n, before = min(get32(h.page_count), self.capacity)
        _check_page_size(page_size)
        PyObject_GetBuffer(sums_bytes, &view, PyBUF_SIMPLE)
        try:
            n = view.len // 8
            if view.len % 8 or (n and <size_t>view.buf % 8):
                raise ValueError(f"{view.len} bytes are not whole and aligned 8-byte checksums")
            self._check_range(1, n)
            values = <const uint64_t*>view.buf
            sums_enter(h)
            for i in range(n):
                set64(self.sums[i], values[i])
            for i in range(n, before):
                set64(self.sums[i], 0)
            set32(h.page_size, page_size)
            set_position(h, <uint32_t>n, txid, post, timestamp, hash)
            sums_leave(h)
        finally:
            PyBuffer_Release(&view)

    def reset(self, uint32_t commit, uint64_t txid, uint64_t post, int64_t timestamp, uint64_t hash):
        cdef sums_header* h = self.header()
        cdef uint32_t pgno, before = min(get32(h.page_count), self.capacity)
        if commit > self.capacity:
            raise ValueError(f"{commit} pages, but room for {self.capacity}")
        sums_enter(h)
        for pgno in range(commit + 1, before + 1):
            set64(self.sums[pgno - 1], 0)
        set_position(h, commit, txid, post, timestamp, hash)
        sums_leave(h)
