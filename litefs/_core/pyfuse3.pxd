"""The one C method of pyfuse3 (3.5) that we extend: how the answer to an open reaches libfuse.

pyfuse3 ships no declarations. Cython compares the size of the object when the module is imported.
"""

from libc.stdint cimport uint64_t


cdef class FileInfo:
    cdef public uint64_t fh
    cdef public bint direct_io
    cdef public bint keep_cache
    cdef public bint nonseekable

    cdef _copy_to_fuse(self, void *out)
