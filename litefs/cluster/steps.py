"""What the role machine is told (events) and what it asks for (actions); see :mod:`litefs.cluster.role`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from litefs.cluster.lease import Grant, PrimaryInfo, View
from litefs.cluster.standing import Standing

# Events: of the store


@dataclass(frozen=True, slots=True)
class Observed:
    """A consistent read has ended, just now."""

    view: View


@dataclass(frozen=True, slots=True)
class Silent:
    """The store did not answer a read."""


@dataclass(frozen=True, slots=True)
class Won:
    """:class:`Take` succeeded."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Missed:
    """:class:`Take` failed: another node was quicker, or the holder lives."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """:class:`Renew` succeeded."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Lost:
    """:class:`Renew` was answered: the lease is not ours any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """:class:`Take` or :class:`Renew` was not answered; it may have happened."""


@dataclass(frozen=True, slots=True)
class Released:
    """:class:`Release` is over; with an ``error`` it may not have happened."""

    error: str = ""


# Events: of the node


@dataclass(frozen=True, slots=True)
class Weighed:
    """The answer to :class:`Weigh`, for that version of the beat."""

    version: str
    standing: Standing


@dataclass(frozen=True, slots=True)
class Promoted:
    """:class:`Promote` is done: the node serves as primary."""


@dataclass(frozen=True, slots=True)
class PromoteFailed:
    """:class:`Promote` failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Demoted:
    """:class:`Demote` is done: commits are refused."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """:class:`HandOver`: commits wait, and the target holds all of them."""


@dataclass(frozen=True, slots=True)
class HandOverFailed:
    """:class:`HandOver` failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class MountUp:
    """The fs process serves."""


@dataclass(frozen=True, slots=True)
class MountGone:
    """The fs process died."""


@dataclass(frozen=True, slots=True)
class SawTerm:
    """A peer named this term."""

    term: int


# Events: of people and of time


@dataclass(frozen=True, slots=True)
class HandoffAsked:
    """The primary is to pass its role to this connected candidate."""

    target: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The node stops; a primary hands off to ``target`` if there is one."""

    target: int | None


@dataclass(frozen=True, slots=True)
class Forced:
    """From now on (or no more) this node may win whatever it lacks."""

    on: bool


@dataclass(frozen=True, slots=True)
class RenewNow:
    """What is to be published does not wait for the next renewal."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    Observed
    | Silent
    | Won
    | Missed
    | Renewed
    | Lost
    | Unanswered
    | Released
    | Weighed
    | Promoted
    | PromoteFailed
    | Demoted
    | CaughtUp
    | HandOverFailed
    | MountUp
    | MountGone
    | SawTerm
    | HandoffAsked
    | StopAsked
    | Forced
    | RenewNow
    | Tick
)


# Actions


@dataclass(frozen=True, slots=True)
class Weigh:
    """Compare what this node holds with the view's beat: :class:`Weighed`."""

    view: View


@dataclass(frozen=True, slots=True)
class Take:
    """Acquire or claim the lease that stands in ``view`` with this term: :class:`Won`, :class:`Missed` or
    :class:`Unanswered`."""

    view: View
    term: int
    in_sync: tuple[int, ...] | None
    forced: bool


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the lease: :class:`Renewed`, :class:`Lost` or :class:`Unanswered`."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Release:
    """Release the lease: :class:`Released`."""

    grant: Grant
    successor: int | None


@dataclass(frozen=True, slots=True)
class Follow:
    """Follow this primary, or nobody."""

    primary: PrimaryInfo | None
    term: int


@dataclass(frozen=True, slots=True)
class Promote:
    """Begin to serve as primary: :class:`Promoted` or :class:`PromoteFailed`."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Demote:
    """Refuse commits from now on: :class:`Demoted`. Comes after a :class:`Promote` or :class:`HandOver` that
    is under way."""

    reason: str


@dataclass(frozen=True, slots=True)
class Extend:
    """Move the commit deadline to this CLOCK_BOOTTIME time in ns."""

    deadline_ns: float


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let commits wait until this replica has all of them: :class:`CaughtUp` or :class:`HandOverFailed`."""

    target: int


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let commits go on."""


@dataclass(frozen=True, slots=True)
class HandoffEnded:
    """The answer to :class:`HandoffAsked`; ``error`` is empty if the lease was released to the target."""

    error: str


@dataclass(frozen=True, slots=True)
class Say:
    """Something for people."""

    text: str


Action: TypeAlias = (
    Weigh | Take | Renew | Release | Follow | Promote | Demote | Extend | HandOver | Thaw | HandoffEnded | Say
)
