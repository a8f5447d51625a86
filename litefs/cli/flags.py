"""Command-line flags with the syntax of Go's ``flag`` package, so that existing scripts keep working.

``-name value``, ``-name=value`` and ``-name`` for booleans, with one dash or two; flags end at the first
other argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


class UsageError(Exception):
    """The arguments do not fit the command; ``str()`` is empty if help was asked for."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. ``metavar`` None makes it a boolean."""

    name: str
    usage: str
    metavar: str | None = None
    default: str = ""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a command takes, for shell completion: flags, and the words or ``paths`` of files that may follow.

    Each module of a command has ``SPECS``, by the command's name.
    """

    flags: Sequence[Flag] = ()
    words: tuple[str, ...] = ()
    paths: bool = False


@dataclass(frozen=True, slots=True)
class Arguments:
    """Parsed flags and the arguments after them."""

    values: dict[str, str]
    switches: frozenset[str]
    rest: tuple[str, ...]


def parse_flags(flags: Sequence[Flag], argv: Sequence[str]) -> Arguments:
    """Parse ``argv`` up to the first argument that is no flag. Raises UsageError."""
    known = {flag.name: flag for flag in flags}
    values = {flag.name: flag.default for flag in flags if flag.metavar is not None}
    switches: set[str] = set()
    rest = list(argv)
    while rest and len(rest[0]) > 1 and rest[0].startswith("-"):
        argument = rest.pop(0)
        if argument == "--":
            break
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if name in ("h", "help"):
            raise UsageError
        flag = known.get(name)
        if flag is None:
            raise UsageError(f"flag provided but not defined: -{name}")
        if flag.metavar is None:
            _set_switch(switches, name, value if equals else "true")
            continue
        if not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        values[name] = value
    return Arguments(values, frozenset(switches), tuple(rest))


def _set_switch(switches: set[str], name: str, value: str) -> None:
    if value in _TRUE:
        switches.add(name)
    elif value in _FALSE:
        switches.discard(name)
    else:
        raise UsageError(f"invalid boolean value {value!r} for -{name}")


def describe(flags: Sequence[Flag]) -> str:
    """The flags as they are listed in a help text."""
    lines = []
    for flag in flags:
        default = f" (default {flag.default})" if flag.default else ""
        lines.append(
            f"  -{flag.name}{' ' + flag.metavar if flag.metavar else ''}\n        {flag.usage}{default}"
        )
    return "\n".join(lines)
