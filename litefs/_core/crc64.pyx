# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: depends = litefs/_core/crc64_impl.h
"""CRC-64/ISO (poly 0x1B reflected, start value and final XOR ~0), the CRC of LTX files and page checksums.

Two ways to compute it: carry-less multiplication (PCLMULQDQ) and slice-by-16 tables. The faster one that this CPU has
is chosen at import, for this module and for every kernel that uses ``crc64_update`` from C.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "crc64_impl.h" nogil:
    void crc64_init()
    int crc64_clmul_usable()
    uint64_t crc64_run_table(uint64_t reg, const uint8_t* p, size_t n)
    uint64_t crc64_run_clmul(uint64_t reg, const uint8_t* p, size_t n)

ctypedef uint64_t (*run_function)(uint64_t, const uint8_t*, size_t) noexcept nogil

# From this size on the GIL is dropped. Giving it up costs little, but getting it back from a busy thread can cost
# milliseconds, which small inputs must not pay.
cdef enum:
    NOGIL_BYTES = 65536

cdef run_function chosen


cdef uint64_t crc64_update(uint64_t crc, const uint8_t* p, size_t n) noexcept nogil:
    return ~chosen(~crc, p, n)


cdef uint64_t _checksum(object data, uint64_t crc, run_function run) except? 0:
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len >= NOGIL_BYTES:
            with nogil:
                crc = ~run(~crc, <const uint8_t*>view.buf, <size_t>view.len)
        else:
            crc = ~run(~crc, <const uint8_t*>view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return crc


def crc64(data, uint64_t crc=0):
    return _checksum(data, crc, chosen)


def crc64_table(data, uint64_t crc=0):
    return _checksum(data, crc, <run_function>crc64_run_table)


def crc64_clmul(data, uint64_t crc=0):
    if not crc64_clmul_usable():
        raise NotImplementedError("this CPU has no carry-less multiplication")
    return _checksum(data, crc, <run_function>crc64_run_clmul)


def backend():
    return "clmul" if chosen == <run_function>crc64_run_clmul else "table"


def set_backend(name):
    global chosen
    if name == "table":
        chosen = <run_function>crc64_run_table
    elif name != "clmul":
        raise ValueError(f"no such CRC backend: {name!r}")
    elif not crc64_clmul_usable():
        raise NotImplementedError("this CPU has no carry-less multiplication")
    else:
        chosen = <run_function>crc64_run_clmul


crc64_init()
set_backend("clmul" if crc64_clmul_usable() else "table")
