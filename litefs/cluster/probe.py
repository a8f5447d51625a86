"""Find out what listens at an address that does not answer as a node does, for the error message only."""

from __future__ import annotations

from urllib.parse import urlsplit

import trio

PROBE_SECONDS = 1.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4
_TLS_ALERT = b"\x15\x03"
"""First bytes of what a TLS server says to bytes that are no TLS (RFC 8446 §5.1, §6)."""


async def speaks_something_else(url: str) -> bytes | None:
    """The first bytes of a peer that does not begin HTTP/2 (RFC 9113 §3.4: a SETTINGS frame), else None.

    An HTTP/2 client cannot tell by itself: to it, the text of another protocol is the head of a huge frame.
    None also for a peer that says nothing, cannot be reached, or is behind TLS.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return None
    data = b""
    with trio.move_on_after(PROBE_SECONDS):
        try:
            async with await trio.open_tcp_stream(parts.hostname, parts.port or 80) as stream:
                await stream.send_all(_PREFACE)
                while len(data) < 9 and (more := await stream.receive_some(64)):
                    data += more
        except OSError:
            return None
        except trio.BrokenResourceError:
            pass
    return data if data and (len(data) < 4 or data[3] != _SETTINGS) else None


def describe(answer: bytes) -> str:
    """What somebody who gave such an answer speaks, and what to do about it."""
    if answer.startswith(_TLS_ALERT) or b"TLS" in answer.partition(b"\r\n")[0]:
        return "speaks TLS: let its URL (lease.advertise-url) begin with https://"
    return f"does not speak HTTP/2, it answers {answer[:40]!r}"
