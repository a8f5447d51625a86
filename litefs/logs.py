"""The process log on stderr, as text (``level=INFO msg="…"``, the form of Go's slog) or as JSON lines."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import Protocol, TextIO

import msgspec


class LogOptions(Protocol):
    """How to log: the ``log`` section of the configuration, or what the fs process was told of it."""

    @property
    def format(self) -> str: ...
    @property
    def timestamp(self) -> bool: ...
    @property
    def debug(self) -> bool: ...


_LEVELS = {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; any other was given by ``extra=`` and is printed."""
_QUOTED = frozenset(' ="')
_QUIET = ("httpx", "httpcore", "hpack", "h2", "hypercorn", "quart", "urllib3")
"""Libraries whose INFO lines tell an operator nothing."""


def setup(config: LogOptions, stream: TextIO | None = None) -> None:
    """Send all log records to ``stream`` (None: stderr), replacing what was set up before."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(_JSONFormatter(config) if config.format == "json" else _TextFormatter(config))
    logging.basicConfig(level=logging.DEBUG if config.debug else logging.INFO, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Formatter(logging.Formatter):
    """One record as one line, made from its attributes in order."""

    def __init__(self, config: LogOptions) -> None:
        super().__init__()
        self._timestamp = config.timestamp

    def attributes(self, record: logging.LogRecord) -> dict[str, object]:
        """time (if wanted), level, msg, what ``extra=`` gave, and an exception's traceback as ``error``."""
        found: dict[str, object] = {}
        if self._timestamp:
            moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
            found["time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        found["level"] = _LEVELS.get(record.levelno, record.levelname)
        found["msg"] = record.getMessage()
        found.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return found


class _TextFormatter(_Formatter):
    """``key=value`` pairs; a value is quoted if a reader could not tell its end otherwise."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quote(str(value))}" for key, value in self.attributes(record).items())


class _JSONFormatter(_Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        return msgspec.json.encode(self.attributes(record), enc_hook=str).decode()


def _quote(text: str) -> str:
    if text and text.isprintable() and _QUOTED.isdisjoint(text):
        return text
    return msgspec.json.encode(text).decode()
