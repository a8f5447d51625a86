"""Every exception of the project, with the errno, HTTP status and exit code that it turns into."""

from __future__ import annotations

import errno


class LiteFSError(Exception):
    """Base of all errors that we raise on purpose."""

    errno: int = errno.EIO
    http_status: int = 500
    exit_code: int = 1


class ConfigError(LiteFSError):
    """The configuration cannot be used; the message says where and what to do."""

    exit_code = 2


class DataDirInUse(LiteFSError):
    """A running node holds the lock of this data directory."""


class ClusterMismatch(LiteFSError):
    """The data directory, or a peer, belongs to another cluster."""

    http_status = 409


class MountError(LiteFSError):
    """The mount point cannot be used or the mount failed."""


class InvalidName(LiteFSError):
    """A database name that could escape the data directory or clash with a control file."""

    errno = errno.EINVAL
    http_status = 400


class DatabaseNotFound(LiteFSError):
    """No database of that name on this node."""

    errno = errno.ENOENT
    http_status = 404


class NotPrimary(LiteFSError):
    """A write was asked of a node that is not the primary."""

    errno = errno.EROFS
    http_status = 503


class HandoffFailed(LiteFSError):
    """The role was not passed on: who was primary still is, or has lost the lease."""


class NotEligible(LiteFSError):
    """This node must not become primary; the message says why, and what would be lost."""

    http_status = 409


class CommitRefused(LiteFSError):
    """A commit was refused before it was logged; the client rolls back."""


class OutcomeUnknown(LiteFSError):
    """The commit is in the log, but the deadline passed, or replicas were lost, before the reply."""


class NotSupported(LiteFSError):
    """Something SQLite can do that is not handled; refused instead of half done."""


class FormatError(LiteFSError):
    """Bytes that are not what they claim to be. The message names file or stream and offset."""

    http_status = 400


class ChecksumMismatch(FormatError):
    """Bytes of the right shape whose checksum is wrong."""


class LogCorrupt(FormatError):
    """A log record that is neither valid nor a torn tail."""


class LogSyncFailed(LiteFSError):
    """fsync of a log segment failed; that segment is never synced again."""


class PositionMismatch(LiteFSError):
    """A record does not chain on the position it is offered to."""

    http_status = 409


class WaitTimeout(LiteFSError):
    """A database did not get as far as was waited for, in time."""

    http_status = 504


class HaltRefused(LiteFSError):
    """A HALT lock that is not held, not by the one who asks, or not any more; nothing was changed."""

    http_status = 409


class StreamEnded(LiteFSError):
    """A replica spoke of a stream that is not open."""

    http_status = 409


class DatabaseBusy(LiteFSError):
    """Others kept a database's locks for longer than was waited."""

    errno = errno.EBUSY
    http_status = 503


class PeerError(LiteFSError):
    """The other node is at fault or unreachable."""

    http_status = 502


class ProtocolMismatch(PeerError):
    """The peer speaks another version of the stream, or no stream at all."""


class NotTrusted(PeerError):
    """Certificate or token: this node and the other one do not trust each other until that is changed."""


class AccessDenied(LiteFSError):
    """The request's token is not for what it asks."""

    errno = errno.EACCES
    http_status = 403


class FsProcessDied(LiteFSError):
    """The fs process ended without being asked to."""


class CommandFailed(LiteFSError):
    """A supervised command could not start, or one that had to succeed did not."""


class ArchiveUnavailable(LiteFSError):
    """The archive's store failed or did not answer; asked again later it may."""

    http_status = 503


class ArchiveMissing(LiteFSError):
    """The archive does not have that object."""

    errno = errno.ENOENT
    http_status = 404


class ArchiveCorrupt(FormatError):
    """The archive holds something that cannot be: a gap, two histories, a checksum that is wrong."""


class NotRestorable(LiteFSError):
    """The archive cannot give that moment; the message names the nearest ones that it can."""

    http_status = 404
