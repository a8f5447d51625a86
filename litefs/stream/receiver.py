"""The replica's end: frames from the network to the :class:`~litefs.stream.protocols.Sink`, a task per
database.

Bytes are parsed as they come and put into one bounded queue per database. A database whose snapshot or apply
is slow delays the others only when its queue is full; then reading stops, and with it the primary's sender. A
database that fails is set aside until the stream is begun anew; the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from litefs.errors import LiteFSError, PeerError
from litefs.stream.frames import (
    Database,
    Drop,
    End,
    Frame,
    Heartbeat,
    Ready,
    RecordPiece,
    Records,
    SnapshotAbort,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotPages,
    unpack_pages,
)
from litefs.stream.handshake import Hello
from litefs.stream.parser import Parser
from litefs.stream.protocols import Buffer, Observer, Sink
from litefs.stream.queue import FRAME_COST, Barrier, DatabaseFrame, Queue
from litefs.stream.spool import Spool

logger = logging.getLogger(__name__)

QUIET_POLL = 0.1
"""Seconds between two looks whether the stream may be left for a database that is to be tried again."""


class DatabaseFailed(LiteFSError):
    """The sink refused what was received for one database; the cause says why."""

    def __init__(self, name: str, cause: LiteFSError) -> None:
        super().__init__(f"{name}: {cause}")
        self.name = name
        self.cause = cause


class _Line:
    """One database on its way from the queue into the sink."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        spool_dir: Path | None,
        on_failed: Callable[[DatabaseFailed], None] | None,
        after: trio.Event | None,
        on_held: Callable[[], None],
    ) -> None:
        """``after``: set when the line that had this name before has ended."""
        self.name = name
        self.ended = trio.Event()
        self._after = after
        self._on_held = on_held
        self.queue = Queue()
        self.failed = False
        self._on_failed = on_failed
        self._sink = sink
        self._spool_dir = spool_dir
        self._spool: Spool | None = None
        self._in_snapshot = False

    @property
    def in_parts(self) -> bool:
        """Whether a snapshot or a big record has begun and not ended: to be cut off would lose it."""
        return self._in_snapshot or self._spool is not None

    async def run(self) -> None:
        """Serve the queue until DROP, or until the sink refuses something. Raises DatabaseFailed if nobody
        is to be told."""
        try:
            if self._after is not None:
                await self._after.wait()
            await self._serve()
        except DatabaseFailed as error:
            if self._on_failed is None:
                raise
            self.failed = True
            self.queue.discard()
            self._on_failed(error)
        finally:
            self.ended.set()

    async def _serve(self) -> None:
        try:
            try:
                while True:
                    frame = await self.queue.take()
                    await self._handle(frame)
                    if isinstance(frame, Drop):
                        return
            finally:
                with trio.CancelScope(shield=True):
                    await self._break_off()
        except LiteFSError as error:
            raise DatabaseFailed(self.name, error) from error
        except OSError as error:  # a full disk; or the mount's fs process died under the applier
            raise DatabaseFailed(self.name, LiteFSError(f"cannot apply: {error}")) from error
        except Exception as error:
            # a mistake of ours, met by one database: it must not take the node down, nor pass unseen
            logger.exception("%s: unexpected error", self.name)
            raise DatabaseFailed(self.name, LiteFSError(f"unexpected error: {error!r}")) from error

    async def _break_off(self) -> None:
        """Forget what was begun: a record in pieces, a snapshot."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self._in_snapshot:
            self._in_snapshot = False
            await self._sink.snapshot_abort(self.name)

    async def _handle(self, frame: DatabaseFrame) -> None:
        sink, name = self._sink, self.name
        if isinstance(frame, Records):
            bodies: list[Buffer] = list(frame.bodies)
            self.queue.take_more_records(bodies)
            await self._records(bodies)
        elif isinstance(frame, RecordPiece):
            await self._piece(frame)
        elif isinstance(frame, SnapshotPages):
            pgnos, images = await trio.to_thread.run_sync(unpack_pages, frame)
            await sink.snapshot_pages(name, pgnos, images)
        elif isinstance(frame, SnapshotBegin):
            await self._break_off()
            self._in_snapshot = True
            await sink.snapshot_begin(name, frame.page_size, frame.commit, frame.at, frame.timestamp)
        elif isinstance(frame, SnapshotEnd):
            await sink.snapshot_end(name, frame.at)
            self._in_snapshot = False
            self._on_held()
        elif isinstance(frame, SnapshotAbort):
            logger.warning("%s: the primary broke off what it was sending: %s", name, frame.reason)
            await self._break_off()
        elif isinstance(frame, Drop):
            await self._break_off()
            await sink.drop(name, deliberate=frame.deliberate)
        else:
            frame.arrive()

    async def _records(self, bodies: list[Buffer]) -> None:
        await self._sink.records(self.name, bodies)
        if not self._in_snapshot:  # else they are the tail of what is not this replica's database yet
            self._on_held()

    async def _piece(self, piece: RecordPiece) -> None:
        if self._spool is None:
            self._spool = Spool(piece.size, self._spool_dir)
        await self._spool.write(piece.data)
        if piece.last:
            spool, self._spool = self._spool, None
            try:
                with spool.view() as body:
                    await self._records([body])
            finally:
                spool.close()


class Receiver:
    """Runs one stream to its end.

    ``on_hello`` is awaited first and may refuse the primary by raising a LiteFSError; ``on_ready`` is called
    after ``Sink.ready``. ``on_failed`` is told of a database that the sink refused; it returns in how many
    seconds the stream is to be left so that it can be begun anew (``left_to_retry``), and until then the
    other databases go on. Without it the first such refusal ends the stream. ``observer`` is told of the
    stream's databases, and run beside it. ``spool_dir`` takes the temporary files of records beyond 8 MiB
    (None: the system's default).
    """

    def __init__(
        self,
        sink: Sink,
        *,
        on_hello: Callable[[Hello], Awaitable[None]] | None = None,
        on_ready: Callable[[], None] | None = None,
        on_failed: Callable[[DatabaseFailed], float] | None = None,
        observer: Observer | None = None,
        spool_dir: Path | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._sink = sink
        self._on_hello = on_hello
        self._on_ready = on_ready
        self._on_failed = on_failed
        self.left_to_retry = False
        """Whether ``run`` returned early, for the sake of databases that failed."""
        self._spool_dir = spool_dir
        self._lines: dict[int, _Line] = {}
        self._ending: dict[str, trio.Event] = {}
        """Names whose DROP came: a database that takes the name waits until that is done."""
        self.bytes_received = 0

    async def run(self, chunks: AsyncIterable[bytes]) -> str:
        """Receive until the primary ends the stream; returns its reason.

        Everything received has gone into the sink when this returns, except for databases that failed.
        Raises ProtocolMismatch or FormatError for bytes that break the rules, DatabaseFailed for what the
        sink refused (see ``on_failed``), PeerError if the bytes just stop.
        """
        try:
            return await self._run(chunks)
        except BaseExceptionGroup as group:
            errors, others = group.split(LiteFSError)
            if errors is None or others is not None:
                raise
            raise _first(errors) from None

    async def _run(self, chunks: AsyncIterable[bytes]) -> str:
        parser = Parser()
        reason: str | None = None
        async with trio.open_nursery() as nursery:
            async for chunk in chunks:
                self.bytes_received += len(chunk)
                for frame in parser.feed(chunk):
                    if isinstance(frame, End):
                        reason = frame.reason
                    else:
                        await self._accept(frame, nursery)
            if reason is None:
                raise PeerError(f"the stream broke off after {self.bytes_received} bytes")
            drained = trio.Event()
            self._after_queues(drained.set)
            await drained.wait()
            nursery.cancel_scope.cancel()
        if self.left_to_retry:
            return "left, to try again what failed"
        assert reason is not None
        return reason

    async def _accept(self, frame: Frame, nursery: trio.Nursery) -> None:
        if isinstance(frame, Hello):
            if self._on_hello is not None:
                await self._on_hello(frame)
            nursery.start_soon(self._observer.run)
        elif isinstance(frame, Database):
            failed = None if self._on_failed is None else partial(self._failed, nursery)
            after = self._ending.pop(frame.name, None)
            self._observer.begins(frame.handle, frame.name)
            on_held = partial(self._observer.holds, frame.handle)
            line = _Line(frame.name, self._sink, self._spool_dir, failed, after, on_held)
            self._lines[frame.handle] = line
            nursery.start_soon(line.run)
        elif isinstance(frame, Heartbeat):
            if frame.timestamp:
                self._after_queues(partial(self._set_time, frame.timestamp))
        elif isinstance(frame, Ready):
            self._after_queues(self._set_ready)
        elif not isinstance(frame, End):
            line = self._lines[frame.handle]
            await line.queue.put(frame, _size(frame))
            if isinstance(frame, Drop):
                self._observer.ends(frame.handle)
                del self._lines[frame.handle]
                self._ending[line.name] = line.ended

    def _failed(self, nursery: trio.Nursery, error: DatabaseFailed) -> None:
        assert self._on_failed is not None
        nursery.start_soon(self._leave, self._on_failed(error), nursery.cancel_scope)

    async def _leave(self, delay: float, scope: trio.CancelScope) -> None:
        """Leave the stream after ``delay`` seconds, and not while another database would lose what it got."""
        await trio.sleep(delay)
        while any(line.in_parts for line in self._lines.values()):  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(QUIET_POLL)
        self.left_to_retry = True
        scope.cancel()

    def _set_time(self, timestamp: int) -> None:
        if not any(line.failed for line in self._lines.values()):  # else it would say what is not so
            self._sink.primary_time(timestamp)

    def _set_ready(self) -> None:
        self._sink.ready()
        if self._on_ready is not None:
            self._on_ready()

    def _after_queues(self, action: Callable[[], None]) -> None:
        """Call ``action`` when all that was received before now is in the sink."""
        barrier = Barrier(action)
        for line in self._lines.values():
            if not line.queue.idle:
                barrier.waiting += 1
                line.queue.put_nowait(barrier)
        barrier.arrive()


def _first(group: BaseExceptionGroup[LiteFSError]) -> LiteFSError:
    """The first single error inside a group."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _size(
    frame: Records | RecordPiece | SnapshotBegin | SnapshotPages | SnapshotEnd | SnapshotAbort | Drop,
) -> int:
    if isinstance(frame, Records):
        return FRAME_COST + sum(map(len, frame.bodies))
    if isinstance(frame, RecordPiece):
        return FRAME_COST + len(frame.data)
    if isinstance(frame, SnapshotPages):
        return FRAME_COST + len(frame.payload)
    return FRAME_COST
