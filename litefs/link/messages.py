"""The messages between the node process and its fs process.

One message is one datagram of a ``SOCK_SEQPACKET`` socketpair, MessagePack with the type's name as tag.
Bulk data never crosses: both sides map the ``sums`` files and read the log.
"""

from __future__ import annotations

import msgspec

from litefs.errors import FormatError
from litefs.link.rules import SyncRules
from litefs.types import Role

FOREVER = (1 << 63) - 1
"""A commit deadline that never passes (static lease)."""

MAX_MESSAGE = 64 << 10
"""Bytes; longer messages are a defect, not input."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of every message."""


# node -> fs


class LogOptions(msgspec.Struct, frozen=True):
    """How the fs process logs, to the standard error it shares with the node process."""

    format: str = "text"
    timestamp: bool = False
    debug: bool = False


class TraceTo(msgspec.Struct, frozen=True):
    """Where the fs process writes its lines of the trace log; as of :class:`litefs.trace.TraceOptions`."""

    path: str = ""
    stdout: bool = False


class Start(Message, frozen=True):
    """First message: what to serve, and where."""

    data_dir: str
    mountpoint: str
    node_id: int
    replica: bool = False
    """Give every database a ``-wal`` before the mount serves: under EROFS no client could make one."""
    allow_other: bool = False
    debug: bool = False
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    log: LogOptions = LogOptions()
    trace: TraceTo = TraceTo()
    grace_ns: int = 0
    """How long a change waits for a deadline that has passed to move, before it is refused."""
    sync: SyncRules = SyncRules()
    compress: bool = True
    strict_verify: bool = False
    """Read the whole database after each commit, and stop it if a page is wrong."""


class SetRole(Message, frozen=True):
    """The role from now on. A primary that becomes something else answers with :class:`Fenced` as soon as
    nothing can be committed any more; :class:`RoleSet` follows when the logs have changed hands.

    ``deadline_ns`` is a CLOCK_BOOTTIME time in nanoseconds. ``primary`` is the primary's hostname while
    this node is a replica that is connected to it.
    """

    role: Role
    term: int
    deadline_ns: int = 0
    primary: str | None = None


class Deadline(Message, frozen=True):
    """The commit deadline was moved by a lease renewal; answered by :class:`Alive`."""

    deadline_ns: int


class Freeze(Message, frozen=True):
    """Hold every commit that has not begun, for a handoff; answered by :class:`Frozen` with the same number,
    ended by :class:`Thaw`, also before that answer, or by another role. Numbers are above 0."""

    number: int


class Thaw(Message, frozen=True):
    """Commits go on; a :class:`Freeze` that was not answered yet is forgotten."""


class Replication(Message, frozen=True):
    """How replicas stand on the primary; the fields of :class:`litefs.cluster.insync.Standing`, then:

    ``hold`` numbers the times that commits began to wait; a new one is answered by :class:`Holding`.
    ``released``: by database, of those that changed, the last transaction that all have who are waited for.
    ``dropped``: removals that the node process knows of: what it says of these names from now on is about
    other databases.
    """

    waiting: bool
    counted: int
    present: int
    settled: bool
    hold: int
    released: dict[str, int]
    dropped: tuple[str, ...] = ()


class Lag(Message, frozen=True):
    """What ``.lag`` shows:

    milliseconds behind, None before the first contact; and the primary's last timestamp (Unix ms).
    """

    lag_ms: int | None
    timestamp_ms: int


class Exposed(Message, frozen=True):
    """A replica's database was installed and may be shown; answered by :class:`ExposedAck`."""

    name: str


class Forget(Message, frozen=True):
    """A replica's database was removed on the primary, or will be shown anew with another page size: show it
    no more, and make open connections fail.

    Answered by :class:`Forgotten`; its files are moved away or replaced afterwards, never changed.
    """

    name: str
    readers: bool = False
    """Read transactions that are open may end before their connections fail."""


class Halt(Message, frozen=True):
    """This replica has the HALT lock of a database: the fs process writes its log, and clients may open it to
    write; answered by :class:`HaltSet`.

    ``frames`` of the WAL generation with these salts are in the log already, and in the database file if
    ``backfilled``. ``deadline_ns``: CLOCK_BOOTTIME, until which the lock is held.
    """

    name: str
    salt1: int
    salt2: int
    frames: int
    backfilled: bool
    deadline_ns: int


class HaltUntil(Message, frozen=True):
    """The HALT lock was renewed."""

    name: str
    deadline_ns: int


class HaltEnd(Message, frozen=True):
    """The HALT lock is given up, or lost: no commit any more; answered by :class:`HaltEnded`, after which the
    node process writes the log."""

    name: str


class Logged(Message, frozen=True):
    """The primary's log has the :class:`Staged` transaction that leads to ``txid``, and its client waits for
    replicas, this one among them: log it durably; :class:`Accepted` follows."""

    name: str
    txid: int


class Accepted(Message, frozen=True):
    """What became of a :class:`Staged` transaction: the primary has it, or ``refusal`` says why not."""

    name: str
    refusal: str | None = None


class Stop(Message, frozen=True):
    """Unmount, settle the databases, end."""


# fs -> node


class Mounted(Message, frozen=True):
    """The mount serves.

    ``minor`` names ``/sys/fs/fuse/connections/N``; ``reports`` are lines about recovery.
    """

    minor: int
    reports: list[str]


class Failed(Message, frozen=True):
    """The fs process cannot go on; it ends after this message. ``exit_code`` is the command's."""

    error: str
    exit_code: int = 1


class Fenced(Message, frozen=True):
    """This node commits nothing any more, under that term or an earlier one."""

    term: int


class Frozen(Message, frozen=True):
    """No commit is under way: the positions stay as they are until :class:`Thaw`."""

    number: int


class Alive(Message, frozen=True):
    """A :class:`Deadline` was heard: this process serves."""


class HeldUp(Message, frozen=True):
    """Who keeps the logs from changing hands, one line for each; empty if nobody does."""

    by: list[str]


class RoleSet(Message, frozen=True):
    """The role of that term is in force, and with it the logs' writer.

    ``failed``: databases, and why, whose log could not change hands: that takes a recovery.
    """

    term: int
    role: Role = Role.NONE
    failed: dict[str, str] = {}


class ExposedAck(Message, frozen=True):
    """The database is visible."""

    name: str


class Forgotten(Message, frozen=True):
    """The database is not visible any more, and nothing of it is answered from memory."""

    name: str


class Dropped(Message, frozen=True):
    """A client removed this database, and its files are gone."""

    name: str


class Opened(Message, frozen=True):
    """A client opened this database for the first time since the mount was made."""

    name: str


class Unpublished(Message, frozen=True):
    """A logged commit stands in a client's way because nobody published it in the wal-index."""

    name: str


class Loose(Message, frozen=True):
    """SQLite broke the chain of a WAL: it has to be emptied by a checkpoint soon."""

    name: str


class Holding(Message, frozen=True):
    """From now on commits wait, as :class:`Replication` asked with this ``hold``."""

    hold: int


class Measured(Message, frozen=True):
    """Each second: what was added to the fs process's :mod:`litefs.meters` since the last time.

    ``times``: counts by bucket and the sum in ns, by name; ``counts``: by database and name.
    """

    times: dict[str, tuple[dict[int, int], int]]
    counts: dict[str, dict[str, int]]


class HaltSet(Message, frozen=True):
    """The database may be written; or ``error`` says why not."""

    name: str
    error: str | None = None


class HaltEnded(Message, frozen=True):
    """The database is not written any more."""

    name: str


class Staged(Message, frozen=True):
    """A transaction under HALT lies beside the log and waits: ship it; answered by :class:`Accepted`.

    ``txid`` and ``checksum``: the position after it.
    """

    name: str
    txid: int
    checksum: int


class Stopped(Message, frozen=True):
    """Everything was unmounted and settled."""


AnyMessage = (
    Start
    | SetRole
    | Deadline
    | Freeze
    | Thaw
    | Replication
    | Lag
    | Exposed
    | Forget
    | Stop
    | Mounted
    | Failed
    | Fenced
    | Frozen
    | Alive
    | HeldUp
    | RoleSet
    | ExposedAck
    | Forgotten
    | Dropped
    | Opened
    | Unpublished
    | Loose
    | Holding
    | Measured
    | Stopped
    | Halt
    | HaltUntil
    | HaltEnd
    | Logged
    | Accepted
    | HaltSet
    | HaltEnded
    | Staged
)

Halting = Halt | HaltUntil | HaltEnd | Logged | Accepted
"""What the node process says of HALT."""

_decoder = msgspec.msgpack.Decoder(AnyMessage)


def decode_message(data: bytes) -> AnyMessage:
    """The message of one datagram. Raises FormatError."""
    try:
        message: AnyMessage = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"message of {len(data)} bytes between fs and node process: {error}") from None
    return message
