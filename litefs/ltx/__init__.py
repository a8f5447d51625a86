"""LTX v3 records: encoder and decoder, without I/O."""

from litefs.ltx.decoder import Decoder, Record, decode, read_page
from litefs.ltx.encoder import Encoder, encode
from litefs.ltx.format import (
    FLAG_NO_CHECKSUM,
    HEADER_SIZE,
    TRAILER_SIZE,
    Header,
    Trailer,
    index_of,
    index_span,
    lock_pgno,
    page_total,
    parse_index,
)

__all__ = [
    "FLAG_NO_CHECKSUM",
    "HEADER_SIZE",
    "TRAILER_SIZE",
    "Decoder",
    "Encoder",
    "Header",
    "Record",
    "Trailer",
    "decode",
    "encode",
    "index_of",
    "index_span",
    "lock_pgno",
    "page_total",
    "parse_index",
    "read_page",
]
