"""Hypercorn's HTTP/2 sending, corrected and made faster for streams that never end.

Reasons to replace parts of :mod:`hypercorn.protocol.h2` (0.18): an answer before the end of the
request's body ends the connection with a KeyError; with a flow-control window of
zero its buffer counts an empty read as progress and lets the application go on, so a replica that stops
reading would make the primary collect the whole stream in memory; it makes one system call for each
frame of 16 KiB; a connection by prior knowledge that never asks anything is never closed; and a CONNECT,
which has no path, ends the connection with a traceback in the log.
"""

from __future__ import annotations

from typing import Any

import h2.events
import h2.exceptions
import hypercorn.protocol
import hypercorn.protocol.h2
from h2.errors import ErrorCodes
from hypercorn.events import Closed, Updated
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer

HIGH_WATER = 256 << 10
"""Bytes that one response may have waiting; beyond it the application waits."""
LOW_WATER = HIGH_WATER // 2
BURST = 128 << 10
"""Bytes of one stream that go into one system call before another stream has its turn."""


class BoundedBuffer(StreamBuffer):
    """A stream's unsent bytes; a push waits while HIGH_WATER bytes or more lie here."""

    async def push(self, data: bytes) -> None:
        """Append ``data``, then wait for room; raises BufferCompleteError after the end."""
        if self._complete:
            raise hypercorn.protocol.h2.BufferCompleteError()
        self.buffer.extend(data)
        await self._is_empty.clear()
        while len(self.buffer) >= HIGH_WATER and not self._complete:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        """Take at most ``max_length`` bytes."""
        with memoryview(self.buffer) as view:
            data = bytes(view[:max_length])
        del self.buffer[: len(data)]
        if len(self.buffer) < LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _Nobody:
    """Stands for a request that was answered before its body had come."""

    async def handle(self, event: object) -> None:
        """The rest of the body is for nobody."""


class _Streams(dict[int, Any]):
    """The streams of a connection; bytes for one that is closed already go nowhere.

    Hypercorn looks a stream up for each piece of a body, and a KeyError ends the whole connection.
    """

    def __missing__(self, stream_id: int) -> _Nobody:
        return _Nobody()


class BurstProtocol(H2Protocol):
    """Sends several frames of a stream in one system call, and outlives early answers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.streams = _Streams()

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        """Begin, with a request if the connection was upgraded for it; else time runs for the first one."""
        await super().initiate(headers, settings)
        if headers is None:
            await self.send(Updated(idle=True))

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        if any(name == b":path" for name, _ in request.headers):
            await super()._create_stream(request)
        else:  # CONNECT, RFC 9113 §8.5: there is nothing to connect to
            self.connection.close_connection(ErrorCodes.CONNECT_ERROR)
            await self._flush()
            await self.send(Closed())

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None:
            self.priority.remove_stream(stream_id)
            return
        try:
            sent = 0
            while sent < BURST:
                window = self.connection.local_flow_control_window(stream_id)
                data = await buffer.pop(max(0, min(window, self.connection.max_outbound_frame_size)))
                if not data:
                    self.priority.block(stream_id)
                    break
                self.connection.send_data(stream_id, data)
                sent += len(data)
            complete = buffer.complete  # it may become so while the flush waits: then there is another round
            if complete:
                self.connection.end_stream(stream_id)
            if sent or complete:
                await self._flush()
            if complete:
                del self.stream_buffers[stream_id]
                self.priority.remove_stream(stream_id)
        except (h2.exceptions.StreamClosedError, KeyError, h2.exceptions.ProtocolError):
            # The stream or the connection was closed by the peer; what is left is for nobody.
            await buffer.close()
            self.stream_buffers.pop(stream_id, None)
            self.priority.remove_stream(stream_id)


def install() -> None:
    """Make Hypercorn use these classes for the connections that it accepts from now on."""
    vars(hypercorn.protocol.h2)["StreamBuffer"] = BoundedBuffer
    vars(hypercorn.protocol)["H2Protocol"] = BurstProtocol
