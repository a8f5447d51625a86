"""``litefs lost``: what a node set aside, and a database of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from litefs import config as configuration
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.table import render
from litefs.errors import FormatError, LiteFSError
from litefs.store import salvage

_FLAGS = (
    Flag("data", "list: the data directory (default: data.dir of the configuration)", "DIR"),
    Flag("config", "list: configuration of the node, else the first that `litefs mount` would find", "PATH"),
    Flag("base", "salvage: a copy of the database as it is now, by `litefs export`", "FILE"),
)
_ACTIONS = ("list", "salvage")

USAGE = {
    "lost": "Usage:\n\n  litefs lost list [ARGUMENTS]\n  litefs lost salvage -base FILE DIRECTORY TARGET\n\n"
    "list names what lies under lost/ of a data directory: what this node had and another history does not.\n"
    "salvage lays the transactions in one of these directories over a copy of FILE, as the new file TARGET:\n"
    "the database as this node had it, or as much of it as is known, which it says. Nothing else changes.\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}",
}
SPECS = {"lost": Spec(_FLAGS, words=_ACTIONS, paths=True)}


def lost(argv: Sequence[str]) -> int:
    """``litefs lost``. Raises UsageError, ConfigError, LiteFSError."""
    if not argv or argv[0] not in _ACTIONS:
        if argv and argv[0].lstrip("-") in ("h", "help"):
            raise UsageError
        raise UsageError(f"required: one of {', '.join(_ACTIONS)}")
    arguments = parse_flags(_FLAGS, argv[1:])
    try:
        return _list(arguments) if argv[0] == "list" else _salvage(arguments)
    except OSError as error:
        raise LiteFSError(f"cannot use {error.filename or 'the files'}: {error.strerror}") from None


def _list(arguments: Arguments) -> int:
    if arguments.rest:
        raise UsageError("too many arguments")
    values = arguments.values
    data = Path(values["data"] or configuration.load(values["config"] or None).config.data.dir)
    if not (data / "dbs").is_dir():
        raise LiteFSError(f"{data} is not a data directory of LiteFS: see data.dir of litefs.yml")
    found = list(salvage.kept(data))
    if not found:
        print(f"nothing was set aside in {data}")
        return 0
    rows = [
        (one.name, f"{one.time:%Y-%m-%d %H:%M:%S}", one.reason, str(one.path.relative_to(data)))
        for one in found
    ]
    print(render(("DATABASE", "TIME (UTC)", "REASON", "DIRECTORY"), rows))
    return 0


def _salvage(arguments: Arguments) -> int:
    base = arguments.values["base"]
    if len(arguments.rest) != 2 or not base:
        raise UsageError("required: -base FILE, the directory under lost/, and the file to make")
    directory, target = map(Path, arguments.rest)
    log = salvage.log_of(directory)
    if log is None:
        raise FormatError(f"{directory} holds no transactions; `litefs lost list` names what is there")
    if target.exists():
        raise LiteFSError(f"{target} exists already: choose another name")
    made = salvage.salvage(log, Path(base), target)
    print(f"{target}: at {made.position}, {made.pages} pages of the log laid over {base}")
    if made.exact:
        print("exactly the database as this node had it")
    else:
        print(
            f"WARNING: not exact: {base} has changed in pages that the log does not have; "
            f"read it with: sqlite3 {target} .recover",
            file=sys.stderr,
        )
    return 0
