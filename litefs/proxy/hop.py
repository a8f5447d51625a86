"""A connection to another node's proxy: HTTP/2 (h2 has the protocol), each stream a pair of byte streams.

httpx, which carries replication, sends the whole body of a request before it reads the response; a request
that is forwarded has to go both ways at a time, as a WebSocket does.
"""

from __future__ import annotations

from collections.abc import Sequence

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio

STREAM_WINDOW = 256 << 10
"""Bytes of one response that may lie here unread."""
CONNECTION_WINDOW = 1 << 30
"""No stream keeps others from being received: what each may have unread is bounded by its own window."""
READ_SIZE = 64 << 10

_Headers = Sequence[tuple[str, str]]


class HopClosed(Exception):
    """The connection ended, or is about to: it takes no stream any more."""


class HopStream(trio.abc.HalfCloseableStream):
    """One request and its response."""

    def __init__(self, hop: Hop, number: int) -> None:
        self._hop = hop
        self.number = number
        self.status: int | None = None
        """Of the response, once it has begun."""
        self._data = bytearray()
        self.owner: Hop | None = None
        """Its connection, if that is of no use to others and ends with it."""
        self._ended = self._lost = self._closed_here = False
        self._changed = trio.lowlevel.ParkingLot()

    async def answered(self) -> int:
        """The status of the response. Raises trio.BrokenResourceError."""
        while self.status is None:
            if self._lost:
                raise trio.BrokenResourceError("the connection to the primary's node was lost")
            await self._changed.park()
        return self.status

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes of the response's body, none at its end. Raises trio.BrokenResourceError."""
        while not self._data:
            if self._lost:
                raise trio.BrokenResourceError("the connection to the primary's node was lost")
            if self._ended:
                return b""
            await self._changed.park()
        data = bytes(self._data[:max_bytes])
        del self._data[: len(data)]
        if not self._ended:
            self._hop.consumed(len(data), self.number)
        return data

    async def wait_send_all_might_not_block(self) -> None:
        """As any stream has."""
        await trio.lowlevel.checkpoint()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises trio.BrokenResourceError."""
        view = memoryview(data)
        while view:
            window = 0 if self._lost else self._hop.window(self.number)
            if self._lost or self._ended:
                raise trio.BrokenResourceError("the primary's node reads no more of the request")
            if window <= 0:
                await self._changed.park()
                continue
            self._hop.send(self.number, bytes(view[:window]))
            view = view[window:]

    async def send_eof(self) -> None:
        """Nothing more will be sent."""
        if not self._closed_here and not self._lost:
            self._closed_here = True
            self._hop.end(self.number)

    async def aclose(self) -> None:
        """Let go of it, whatever is under way."""
        if not (self._ended and self._closed_here) and not self._lost:
            self._hop.reset(self.number)
        self._lost = True
        self._hop.forget(self.number)
        if self.owner is not None:
            self.owner.scope.cancel()
        await trio.lowlevel.checkpoint()

    # -- of the connection's reader ---------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        self._data += data
        self.wake()

    def ended(self) -> None:
        self._ended = True
        self.wake()

    def lost(self) -> None:
        self._lost = True
        self.wake()

    def wake(self) -> None:
        self._changed.unpark_all()


class Hop:
    """One HTTP/2 connection, as its client. ``run`` must be running."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._conn = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        self._conn.local_settings = h2.settings.Settings(
            client=True,
            initial_values={codes.ENABLE_PUSH: 0, codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW},
        )
        self._streams: dict[int, HopStream] = {}
        self._to_send = trio.Event()
        self._is_over = False
        self.begun = trio.Event()
        """Set once the peer has said how many streams it takes, or the connection is over."""
        self.scope = trio.CancelScope()
        """To be cancelled by whoever ends the connection."""
        self._unacknowledged = 0
        self.used = trio.current_time()
        """When the last stream was opened or ended."""

    @property
    def is_usable(self) -> bool:
        """Whether another stream can be opened now."""
        return not self._is_over and len(self._streams) < self._conn.remote_settings.max_concurrent_streams

    @property
    def is_idle(self) -> bool:
        """Whether no stream is open."""
        return not self._streams

    @property
    def is_over(self) -> bool:
        """Whether no stream can be opened any more."""
        return self._is_over

    async def run(self) -> None:
        """Carry the connection until it ends, or is cancelled. Raises nothing."""
        self._conn.initiate_connection()
        self._conn.increment_flow_control_window(CONNECTION_WINDOW)
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    self._wake_writer()
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self._is_over = True
            self.begun.set()
            for stream in tuple(self._streams.values()):
                stream.lost()
            await trio.aclose_forcefully(self._stream)

    async def _read(self) -> None:
        try:
            while data := await self._stream.receive_some(READ_SIZE):
                for event in self._conn.receive_data(bytes(data)):
                    self._handle(event)
                self._wake_writer()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h2.exceptions.H2Error):
            pass  # whoever has a stream is told by ``run``

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send = trio.Event()
            if data := self._conn.data_to_send():
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # the reader sees it, too

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ConnectionTerminated():
                self._is_over = True
                last = event.last_stream_id or 0
                for stream in tuple(self._streams.values()):
                    if stream.number > last:
                        stream.lost()
            case h2.events.RemoteSettingsChanged():
                self.begun.set()
                for stream in self._streams.values():
                    stream.wake()
            case h2.events.WindowUpdated(stream_id=number):
                for stream in self._streams.values():
                    if number in (0, stream.number):
                        stream.wake()
            case h2.events.DataReceived():
                self._data_received(event)
            case _:
                stream_id = getattr(event, "stream_id", None)
                if stream_id in self._streams:
                    _stream_did(self._streams[stream_id], event)

    def _data_received(self, event: h2.events.DataReceived) -> None:
        self._unacknowledged += event.flow_controlled_length or 0
        if self._unacknowledged >= CONNECTION_WINDOW // 4:
            self._conn.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            stream.received(event.data or b"")

    # -- of the streams ---------------------------------------------------------------------------------

    def open(self, headers: _Headers) -> HopStream:
        """Begin a request. Raises HopClosed."""
        if not self.is_usable:
            raise HopClosed("the connection takes no more requests")
        try:
            number = self._conn.get_next_available_stream_id()
            self._conn.send_headers(number, headers)
        except h2.exceptions.H2Error as error:
            self._is_over = True
            raise HopClosed(str(error)) from error
        stream = self._streams[number] = HopStream(self, number)
        self.used = trio.current_time()
        self._wake_writer()
        return stream

    def window(self, number: int) -> int:
        """How many bytes may be sent now at once."""
        try:
            window = self._conn.local_flow_control_window(number)
        except h2.exceptions.H2Error:
            return 0
        return min(window, self._conn.max_outbound_frame_size)

    def send(self, number: int, data: bytes) -> None:
        """Send up to ``window`` bytes. Raises trio.BrokenResourceError."""
        try:
            self._conn.send_data(number, data)
        except h2.exceptions.H2Error as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._wake_writer()

    def end(self, number: int) -> None:
        """The request is complete."""
        try:
            self._conn.end_stream(number)
        except h2.exceptions.H2Error:
            return  # it was reset meanwhile
        self._wake_writer()

    def reset(self, number: int) -> None:
        """The request is given up."""
        try:
            self._conn.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.H2Error:
            return
        self._wake_writer()

    def consumed(self, count: int, number: int) -> None:
        """Bytes of a response were taken."""
        try:
            self._conn.increment_flow_control_window(count, number)
        except h2.exceptions.H2Error:
            return
        self._wake_writer()

    def forget(self, number: int) -> None:
        """Nobody waits for that stream any more."""
        self._streams.pop(number, None)
        self.used = trio.current_time()

    def _wake_writer(self) -> None:
        self._to_send.set()


def _stream_did(stream: HopStream, event: h2.events.Event) -> None:
    match event:
        case h2.events.ResponseReceived():
            stream.status = next(int(value) for name, value in event.headers or () if name == b":status")
            stream.wake()
        case h2.events.StreamEnded():
            stream.ended()
        case h2.events.StreamReset():
            stream.lost()
