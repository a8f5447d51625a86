"""One request and its response between a client's connection and the application's, streamed both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import h11
import trio

from litefs.proxy.fields import Fields, end_to_end, outbound, upgrades
from litefs.proxy.link import READ_SIZE, ClientFault, Link, TargetFault

WATCH_SECONDS = 1.0
"""Until then a response may take before the client's connection is watched, too, for its leaving."""

SWITCHING = 101

Added = Callable[[], Fields]


@dataclass(slots=True)
class Incoming:
    """A request as far as it was read: ``parts`` of its body, and its ``end`` if that was there, too."""

    request: h11.Request
    parts: list[h11.Data] = field(default_factory=list)
    end: h11.EndOfMessage | None = None


def serialized(conn: h11.Connection, request: h11.Request, incoming: Incoming) -> bytes:
    """What is to be sent first: ``request`` in the place of the client's own, and all that came of its
    body. Raises TargetFault for what cannot be sent."""
    events = (request, *incoming.parts) if incoming.end is None else (request, *incoming.parts, incoming.end)
    return b"".join([_send(conn, event) for event in events])


def _send(conn: h11.Connection, event: h11.Event) -> bytes:
    if isinstance(event, h11.EndOfMessage) and event.headers and conn.their_http_version == b"1.0":
        event = h11.EndOfMessage()  # trailers come behind chunks, which it does not know
    try:
        return conn.send(event) or b""
    except h11.LocalProtocolError as error:  # h11 has checked the message where it came from
        raise TargetFault(f"Proxy error: {error}") from error


async def exchange(front: Link, upstream: Link, incoming: Incoming, added: Added) -> bool:
    """Pass the rest of the request on, and the whole response back.

    What :func:`serialized` made has been sent. ``added`` gives more fields of the response once that begins.
    Returns whether both sides switched to another protocol, which :func:`tunnel` then carries. Raises
    ClientFault, TargetFault.
    """
    if incoming.end is not None:
        return await _relay_response(front, upstream, added)
    fault: ClientFault | TargetFault | None = None
    switched = False
    async with trio.open_nursery() as nursery:

        async def pump() -> None:
            nonlocal fault
            try:
                await _relay_body(front, upstream)
            except TargetFault:
                pass  # it may have answered before it stopped to read
            except ClientFault as error:
                fault = error
                nursery.cancel_scope.cancel()

        nursery.start_soon(pump)
        try:
            switched = await _relay_response(front, upstream, added)
        except (ClientFault, TargetFault) as error:
            fault = fault or error
        nursery.cancel_scope.cancel()
    if fault is not None:
        raise fault
    return switched


async def _relay_body(front: Link, upstream: Link) -> None:
    out: list[bytes] = []
    while True:
        event = front.next_event()
        if event is h11.NEED_DATA:
            await upstream.send(b"".join(out))
            out.clear()
            await front.fill()
        elif isinstance(event, (h11.Data, h11.EndOfMessage)):
            out.append(_send(upstream.conn, event))
            if isinstance(event, h11.EndOfMessage):
                await upstream.send(b"".join(out))
                return
        else:
            raise ClientFault("the request's body ended early")


async def _relay_response(front: Link, upstream: Link, added: Added) -> bool:
    out: list[bytes] = []
    while True:
        event = upstream.next_event()
        if event is h11.NEED_DATA:
            await front.send(b"".join(out))
            out.clear()
            await _await_bytes(front, upstream)
        elif isinstance(event, h11.Data):
            out.append(_send(front.conn, event))
        elif isinstance(event, h11.Response):
            out.append(_send(front.conn, outbound(event, added())))
        elif isinstance(event, h11.EndOfMessage):
            out.append(_send(front.conn, event))
            await front.send(b"".join(out))
            return False
        elif isinstance(event, h11.InformationalResponse):
            switched = event.status_code == SWITCHING
            if switched or front.conn.their_http_version == b"1.1":
                out.append(_send(front.conn, _informational(event, added if switched else None)))
            if switched:
                await front.send(b"".join(out))
                return True
        else:
            raise TargetFault("Proxy error: the application closed the connection")


def _informational(event: h11.InformationalResponse, added: Added | None) -> h11.InformationalResponse:
    fields = end_to_end(event.headers)
    if added is not None:
        protocol = upgrades(event.headers) or b""
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", protocol), *added()]
    return h11.InformationalResponse(status_code=event.status_code, headers=fields, reason=event.reason)


async def _await_bytes(front: Link, upstream: Link) -> None:
    """The next bytes of the response, but not for a client that has left: it may take for ever."""
    while True:
        if await upstream.fill_until(trio.current_time() + WATCH_SECONDS):
            return
        if front.conn.their_state is not h11.SEND_BODY:
            break  # until then whoever reads the request's body sees the client leave
    fault: TargetFault | None = None
    gone = False
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal gone
            await front.gone()
            gone = True
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await upstream.fill()
        except TargetFault as error:
            fault = error
        nursery.cancel_scope.cancel()
    if gone:
        raise ClientFault("the client left")
    if fault is not None:
        raise fault


async def tunnel(front: Link, upstream: Link) -> None:
    """Carry bytes both ways until both sides ended, or one is lost. Raises nothing."""
    async with trio.open_nursery() as nursery:

        async def carry(source: Link, sink: Link) -> None:
            try:
                await sink.send(source.conn.trailing_data[0])
                while data := await source.stream.receive_some(READ_SIZE):
                    await sink.send(bytes(data))
                await sink.stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError, ClientFault, TargetFault):
                nursery.cancel_scope.cancel()

        nursery.start_soon(carry, front, upstream)
        nursery.start_soon(carry, upstream, front)


async def respond(front: Link, status: int, text: str, fields: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer by ourselves, in one line of text. Raises ClientFault."""
    body = f"{text}\n".encode() if text else b""
    headers = [*fields, (b"Content-Length", b"%d" % len(body))]
    if text:
        headers += [(b"Content-Type", b"text/plain; charset=utf-8"), (b"X-Content-Type-Options", b"nosniff")]
    events: list[h11.Event] = [h11.Response(status_code=status, headers=headers)]
    if body and not front.is_head:
        events.append(h11.Data(data=body))
    await front.send(b"".join(_send(front.conn, event) for event in (*events, h11.EndOfMessage())))
