from typing import Literal

from typing_extensions import Buffer

def crc64(data: Buffer, crc: int = 0) -> int:
    """CRC-64/ISO of what ``crc`` covers followed by ``data``; a finished value in and out, as zlib.crc32."""

def crc64_table(data: Buffer, crc: int = 0) -> int:
    """The same by slice-by-16 tables, on any CPU."""

def crc64_clmul(data: Buffer, crc: int = 0) -> int:
    """The same by carry-less multiplication. Raises NotImplementedError where the CPU has none."""

def backend() -> Literal["clmul", "table"]:
    """The way that ``crc64`` and all kernels compute it now."""

def set_backend(name: Literal["clmul", "table"]) -> None:
    """Choose the way, for tests and benchmarks.

    Raises ValueError for another name, NotImplementedError where the CPU has no carry-less multiplication.
    """
