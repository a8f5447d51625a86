"""``litefs``: finds the command, turns errors into a line on stderr and an exit code.

A command's module is imported only when it runs: what a mount does not need must not cost it memory.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from litefs.cli.flags import UsageError
from litefs.errors import LiteFSError

USAGE_EXIT_CODE = 2

Run = Callable[[Sequence[str]], int]


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is: the module has ``USAGE`` and ``SPECS``, by command, and the function named here."""

    name: str
    summary: str
    module: str
    function: str


COMMANDS = (
    Command("mount", "mount the file system and replicate its databases", "litefs.cli.mount", "mount"),
    Command("import", "send a SQLite database file into a cluster", "litefs.cli.transfer", "import_command"),
    Command("export", "fetch a database from a node into a file", "litefs.cli.transfer", "export_command"),
    Command("run", "run a command, also one that writes on a replica", "litefs.cli.run", "run"),
    Command("promote", "make a node the primary", "litefs.cli.roles", "promote"),
    Command("handoff", "have the primary pass its role to a node", "litefs.cli.roles", "handoff"),
    Command("status", "show nodes, databases, positions and lag", "litefs.cli.status", "status"),
    Command("databases", "list the databases of a node", "litefs.cli.databases", "databases"),
    Command("drop", "remove a database from the cluster", "litefs.cli.databases", "drop"),
    Command("ltx", "list, show or verify the log, also of a stopped node", "litefs.cli.ltx", "ltx"),
    Command("lost", "list what was set aside, make a database of it", "litefs.cli.lost", "lost"),
    Command("restore", "restore databases from an archive, at any moment", "litefs.cli.restore", "restore"),
    Command("backup", "look at an archive, verify or prune it", "litefs.cli.backup", "backup"),
    Command("config", "check a configuration and show what is in force", "litefs.cli.config", "config"),
    Command("completion", "print a completion script for a shell", "litefs.cli.completion", "completion"),
    Command("bench", "load a directory, say how fast it is", "litefs.cli.bench", "bench"),
    Command("version", "print the version", "litefs.cli.version", "version"),
)


def usage() -> str:
    """The text of ``litefs --help``."""
    commands = "\n".join(f"  {command.name:<12}{command.summary}" for command in COMMANDS)
    return (
        "litefs replicates SQLite databases from one primary to many replicas.\n\n"
        f"Usage:\n\n  litefs COMMAND [ARGUMENTS]\n\nCommands:\n\n{commands}\n\n"
        'Run "litefs COMMAND --help" for the arguments of a command.'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 for errors, 2 for usage and configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] == "help" or arguments[0].startswith("-"):
        print(usage(), file=sys.stderr)
        return USAGE_EXIT_CODE
    command = next((command for command in COMMANDS if command.name == arguments[0]), None)
    if command is None:
        near = difflib.get_close_matches(arguments[0], [one.name for one in COMMANDS], n=1)
        hint = f"did you mean {near[0]}?" if near else "litefs --help lists them"
        print(f"ERROR: litefs {arguments[0]}: unknown command; {hint}", file=sys.stderr)
        return 1
    module = importlib.import_module(command.module)
    run: Run = getattr(module, command.function)
    try:
        code = run(arguments[1:])
        sys.stdout.flush()
        return code
    except UsageError as error:
        if str(error):
            print(f"ERROR: {error}\n", file=sys.stderr)
        print(module.USAGE[command.name], file=sys.stderr)
        return USAGE_EXIT_CODE
    except LiteFSError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # as `litefs ltx list | head`; nothing more may be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("ERROR: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
