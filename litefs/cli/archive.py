"""What the commands share that look at an archive: where it is, how moments and sizes are written."""

from __future__ import annotations

import math
import re
from datetime import datetime

from litefs import config as configuration
from litefs.backup.target import Target
from litefs.backup.targets import TargetOptions, open_target, target_of
from litefs.cli.flags import Arguments, Flag, UsageError
from litefs.config_types import Duration
from litefs.errors import ConfigError

KEY_FLAG = Flag("key-file", "the file of the keys, if the archive is encrypted", "PATH")

_TXID = re.compile(r"[0-9A-Fa-f]{1,16}")
_SIZE = re.compile(r"([0-9]+)\s*(|[KMGT])i?B?", re.IGNORECASE)


def target_at(source: str, arguments: Arguments) -> Target:
    """The archive at ``source``, or if that is empty the one of -config. Raises UsageError, ConfigError."""
    if source:
        return open_target(source, TargetOptions(key_file=arguments.values[KEY_FLAG.name] or None))
    if not arguments.values["config"]:
        raise UsageError("required: where the archive is, or -config")
    backup = configuration.load(arguments.values["config"]).config.backup
    if not backup.enabled:
        raise ConfigError(f"{arguments.values['config']} has no backup section")
    return target_of(backup)


def parse_time(text: str, flag: str) -> int:
    """RFC 3339 as Unix ms, the next one if it lies between two. Raises UsageError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UsageError(f"-{flag}: write the time as 2026-09-21T14:13:50Z or with +02:00, not {text!r}")
    return math.ceil(round(moment.timestamp() * 1_000_000) / 1000)


def parse_moment(text: str, flag: str, now: float) -> int:
    """As ``parse_time``, or how long before ``now`` (Unix s): ``90s``, ``15m``, ``2h``. Raises UsageError."""
    try:
        ago = Duration.parse(text.removesuffix(" ago"))
    except (ConfigError, ValueError):
        return parse_time(text, flag)
    return math.ceil((now - ago) * 1000)


def parse_txid(text: str, flag: str = "txid") -> int:
    """Hexadecimal, as everywhere. Raises UsageError."""
    if not _TXID.fullmatch(text) or not int(text, 16):
        raise UsageError(f"-{flag}: not a number of a transaction in hexadecimal: {text!r}")
    return int(text, 16)


def parse_size(text: str, flag: str) -> int:
    """Bytes: ``67108864``, ``64M``, ``64MiB``; units are powers of 1024. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"-{flag}: write a size as 64M or 67108864, not {text!r}")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")
