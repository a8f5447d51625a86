"""CRC-64/ISO and page checksums from their definition, one bit after the other (a byte of it tabulated)."""

from __future__ import annotations

from collections.abc import Iterable

FLAG = 1 << 63
_POLY = 0xD800000000000000  # x^64 + x^4 + x^3 + x + 1, reflected
_MASK = (1 << 64) - 1


def _byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLY if value & 1 else 0)
    return value


_TABLE = [_byte(value) for value in range(256)]


def crc64(data: Iterable[int], crc: int = 0) -> int:
    """Finished value in and out."""
    register = crc ^ _MASK
    for byte in data:
        register = _TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ _MASK


def page_checksum(pgno: int, page: bytes) -> int:
    return FLAG | crc64(page, crc64(pgno.to_bytes(4, "big")))


def lock_pgno(page_size: int) -> int:
    return 0x40000000 // page_size + 1


def database_checksum(pages: dict[int, bytes], page_size: int) -> int:
    """The rolling checksum of a database given as its pages."""
    total = 0
    for pgno, page in pages.items():
        if pgno != lock_pgno(page_size):
            total ^= page_checksum(pgno, page)
    return FLAG | total
