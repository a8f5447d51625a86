"""What ``litefs.yml`` is made of: its sections, and scalars that YAML has no type for (Go durations, octal
modes, numbers of replicas, secrets, shell-like commands)."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal
from typing import ClassVar, Self

import msgspec

from litefs.errors import ConfigError

# Go accepts both the micro sign and the Greek letter.
_UNITS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_TERM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = Decimal((1 << 63) - 1) * _UNITS["ns"]
_SHELL_OPERATORS = frozenset(";&|<>")
_MAX_MODE = 0o7777


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """Frozen, keyword-only, YAML names with dashes; unknown keys are errors."""


class Duration(float):
    """A span of time in seconds, written as Go writes it: ``500ms``, ``1m30s``, ``1.5h``, ``0s``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read the syntax of Go's ``time.ParseDuration``: signed decimals, each with a unit.

        Raises ConfigError if a number has no unit, the text is no duration, or it is too long for Go.
        """
        sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        if body == "0":
            return cls(0.0)
        total, end = Decimal(0), 0
        for term in _TERM.finditer(body):
            if term.start() != end:
                break
            total += Decimal(term[1]) * _UNITS[term[2]]
            end = term.end()
        if not body or end != len(body):
            raise ConfigError(f'{text!r} is not a duration; write number and unit, as in "500ms" or "1m30s"')
        if total > _LONGEST:
            raise ConfigError(f"{text[:40]!r} is longer than any duration can be (about 292 years)")
        return cls(float(sign * total))

    def __str__(self) -> str:
        """The same text as Go's ``Duration.String``: ``5.5ms``, ``1m30s``, ``0s``; exact to a nanosecond."""
        nanoseconds = round(abs(self) * 1e9)
        sign = "-" if self < 0 and nanoseconds else ""
        if nanoseconds == 0:
            return "0s"
        if nanoseconds < 1_000_000_000:
            units = (("ms", 10**6), ("µs", 10**3), ("ns", 1))
            unit, scale = next((name, scale) for name, scale in units if nanoseconds >= scale)
            return f"{sign}{_decimal(nanoseconds, scale)}{unit}"
        minutes, rest = divmod(nanoseconds, 60 * 10**9)
        hours, minutes = divmod(minutes, 60)
        seconds = f"{_decimal(rest, 10**9)}s"
        if hours:
            return f"{sign}{hours}h{minutes}m{seconds}"
        return f"{sign}{minutes}m{seconds}" if minutes else f"{sign}{seconds}"


def _decimal(value: int, scale: int) -> str:
    """``value / scale`` without an exponent and without trailing zeros."""
    return f"{Decimal(value) / scale:f}"


class FileMode(int):
    """Permission bits, always read as octal: ``640``, ``0640`` and ``0o640`` are the same mode."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> FileMode:
        """Raises ConfigError if the text is no octal number up to 7777."""
        try:
            value = int(text.removeprefix("0o"), 8)
        except ValueError:
            value = -1
        if not 0 <= value <= _MAX_MODE:
            raise ConfigError(f'{text!r} is not a file mode; write it in octal, as in "0640"')
        return cls(value)


class Sync(int):
    """How many replicas must hold a commit: ``off`` (0), ``any`` (1), or a number of 1 to MOST."""

    MOST = 15

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Sync:
        """Raises ConfigError if it is none of these."""
        named = {"off": 0, "any": 1}.get(text)
        if named is not None:
            return cls(named)
        if not text.isascii() or not text.isdigit() or len(text) > 2 or not 1 <= int(text) <= cls.MOST:
            raise ConfigError(f"{text!r} is neither off, any, nor a number of 1 to {cls.MOST} replicas")
        return cls(int(text))


def split_command(command: str) -> list[str]:
    """Words of an ``exec`` command: quotes and backslashes as in a shell, no variables, no redirection.

    Go LiteFS cuts the command off, without a word, at an unquoted ``; & | < >``; we refuse it.
    Raises ConfigError also for an empty command and an open quote.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"exec command {command!r}: {error}") from None
    if not words:
        raise ConfigError("an exec command is empty")
    operator = _unquoted_operator(command)
    if operator is not None:
        raise ConfigError(
            f"exec command {command!r}: {operator!r} needs a shell; quote it, or run it all with sh -c '...'"
        )
    return words


def _unquoted_operator(command: str) -> str | None:
    """The first shell operator outside quotes; the quotes are known to be balanced."""
    quote = ""
    characters = iter(command)
    for character in characters:
        if character == "\\" and quote != "'":
            next(characters, None)
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _SHELL_OPERATORS:
            return character
    return None


class NonEmpty(str):
    """A text that may be left out, but not be there and empty: then a variable that is not set would open
    what the key was to close."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError for an empty text."""
        if not text:
            raise ConfigError("is empty; is the variable set? To do without, leave the key out")
        return cls(text)


class FilePath(NonEmpty):
    """The path of a file that has to be there."""

    __slots__ = ()


class Secret(NonEmpty):
    """A text that no message shows: itself, or ``file:PATH`` for what that file holds."""

    __slots__ = ()
    FILE: ClassVar = "file:"

    @property
    def path(self) -> str | None:
        """The file to read, None if this is the secret itself."""
        return self.removeprefix(self.FILE) if self.startswith(self.FILE) else None

    def __repr__(self) -> str:
        return "Secret(…)"
