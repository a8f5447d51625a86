"""``litefs config check``: whether a configuration can be used, and what is in force with it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Sequence

import msgspec
import yaml

from litefs import config as configuration
from litefs.cli.flags import Flag, Spec, UsageError, describe, parse_flags
from litefs.config import Config
from litefs.config_types import Duration, FileMode, Secret, Sync

_FLAGS = (
    Flag("config", "path of the configuration file", "PATH"),
    Flag("no-expand-env", "do not expand environment variables in the configuration file"),
    Flag("quiet", "print only what is wrong or probably not meant"),
)
_ACTIONS = ("check",)

USAGE = {
    "config": "Usage:\n\n  litefs config check [ARGUMENTS]\n\n"
    "Reads the configuration that `litefs mount` would read, with its certificates and tokens, and prints\n"
    "every value in force, secrets masked. Warnings go to stderr. Ends with 2 if it cannot be used.\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}",
}
SPECS = {"config": Spec(_FLAGS, words=_ACTIONS)}

MASK = "(secret)"
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]+(?=@)")
_SECRET_KEYS = frozenset(("auth-token", "token"))


def config(argv: Sequence[str]) -> int:
    """``litefs config``. Raises UsageError, ConfigError."""
    if not argv or argv[0] not in _ACTIONS:
        if argv and argv[0].lstrip("-") in ("h", "help"):
            raise UsageError
        raise UsageError("required: check")
    arguments = parse_flags(_FLAGS, argv[1:])
    if arguments.rest:
        raise UsageError("too many arguments")
    os.environ.setdefault("HOSTNAME", socket.gethostname())  # as mount does
    expand = "no-expand-env" not in arguments.switches
    loaded = configuration.load(arguments.values["config"] or None, expand_env=expand)
    logging.basicConfig(format="WARNING: %(message)s", level=logging.WARNING)
    # Only now: it brings HTTP. It reads certificates and tokens.
    from litefs.security import Security

    Security.of(loaded.config)
    if "quiet" not in arguments.switches:
        print(f"# {loaded.path} can be used; every value in force, secrets masked:")
        print(effective(loaded.config), end="")
    return 0


def effective(config: Config) -> str:
    """All values, as YAML that reads back as the same configuration but for secrets."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, default_flow_style=False)


def _plain(value: object, key: str = "") -> object:
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        named = ((field.encode_name, getattr(value, field.name)) for field in fields)
        return {name: _plain(one, name) for name, one in named if one is not None}
    if isinstance(value, tuple):
        return [_plain(one, key) for one in value]
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, FileMode):
        return f"{int(value):04o}"
    if isinstance(value, Secret):
        return str(value) if value.path is not None else MASK
    if isinstance(value, str):
        return MASK if value and key in _SECRET_KEYS else _PASSWORD.sub(rf"\1:{MASK}", str(value))
    if isinstance(value, Sync):
        return {0: "off", 1: "any"}.get(value, int(value))
    return value
