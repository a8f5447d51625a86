"""Reading requests from a client's connection, within the times that the configuration gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import h11
import trio

from litefs.config_proxy import ProxyConfig
from litefs.proxy.exchange import Incoming
from litefs.proxy.link import ClientFault, Link

SMALL_BODY = 64 << 10
"""Bytes: a body that is announced to be no longer is read whole before the request goes on."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, ``math.inf`` for none: from the first byte to the end of the head (``header``) and of the body
    (``read``), from the head to the end of the response (``write``), between two requests (``idle``)."""

    header: float
    read: float
    write: float
    idle: float

    @classmethod
    def of(cls, config: ProxyConfig) -> Times:
        """As Go's net/http takes them: without one of their own, head and idle time are ``read``."""
        read = config.read_timeout or math.inf
        return cls(
            header=min(config.read_header_timeout or read, read),
            read=read,
            write=config.write_timeout or math.inf,
            idle=config.idle_timeout or read,
        )


async def next_request(front: Link, times: Times, *, first: bool) -> Incoming | None:
    """The next request, with its body if that is small; None if the client has nothing more to ask.

    ``first``: of its connection, on which nothing has come yet. Raises ClientFault.
    """
    begun = bool(front.conn.trailing_data[0])
    start = trio.current_time()
    front.read_deadline = start + (times.header if first or begun else times.idle)
    try:
        while (event := front.next_event()) is h11.NEED_DATA:
            await front.fill()
            if not begun and front.conn.trailing_data[0]:
                begun, start = True, trio.current_time()
                front.read_deadline = start + times.header
    except ClientFault:
        if not begun and not front.conn.trailing_data[0]:
            return None  # it left, or was silent, between two requests
        raise
    if not isinstance(event, h11.Request):
        return None
    front.is_head = event.method == b"HEAD"
    front.read_deadline = start + times.read
    incoming = Incoming(event)
    await _read_body(front, incoming)
    return incoming


async def _read_body(front: Link, incoming: Incoming) -> None:
    """What is there of the body, or all of a small one; not if the client waits to be told to send it."""
    whole = _is_small(incoming.request) and not front.conn.they_are_waiting_for_100_continue
    while True:
        event = front.next_event()
        if isinstance(event, h11.Data):
            incoming.parts.append(event)
        elif isinstance(event, h11.EndOfMessage):
            incoming.end = event
            return
        elif event is h11.NEED_DATA and whole:
            await front.fill()
        elif event is h11.NEED_DATA:
            return
        else:
            raise ClientFault("the request's body ended early")


def _is_small(request: h11.Request) -> bool:
    """Whether the body's length is known, and small. h11 has checked that it is a number."""
    return any(name == b"content-length" and int(value) <= SMALL_BODY for name, value in request.headers)
