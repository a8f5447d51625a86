# cython: language_level=3
"""The answer to an open whose descriptors are closed without a FLUSH request (FOPEN_NOFLUSH, FUSE 7.35).

close(2) runs a FLUSH to its end before the kernel drops the process' POSIX locks on the file. pyfuse3 has no name
for the flag. A libfuse before 3.11 or a kernel before 5.16 ignores it.
"""

from libc.stdint cimport uint32_t
from pyfuse3 cimport FileInfo

cdef enum:
    NOFLUSH = 1 << 7       # of the bits that follow ``int32_t flags`` in struct fuse_file_info, fixed by libfuse3.so.3


cdef class UnflushedInfo(FileInfo):
    """A pyfuse3.FileInfo that sets the flag."""

    cdef _copy_to_fuse(self, void *out):
        FileInfo._copy_to_fuse(self, out)
        (<uint32_t *>out)[1] |= NOFLUSH
