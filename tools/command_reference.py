"""The page on the commands, from the texts that the commands print themselves."""

from __future__ import annotations

import contextlib
import io
import re

from litefs.cli.main import main

INTRODUCTION = """\
# Commands

What `litefs COMMAND --help` prints. Flags are written with one dash or two, as `-name value` or
`-name=value`, and end at the first other argument. Results go to stdout, logs and errors to stderr.

Exit codes: 0; 1 for an error, which is named in a line that says what to do; 2 for wrong arguments or a wrong
configuration. `litefs mount` ends with the exit code of the application that it runs.
"""


def printed(*argv: str) -> str:
    """What a command prints as help."""
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        main(argv)
    return output.getvalue().strip()


def render() -> str:
    """The whole page."""
    overview = printed("help")
    listed = overview.partition("Commands:")[2]
    lines = [INTRODUCTION, "```text", overview, "```", ""]
    for name in re.findall(r"(?m)^  ([a-z]+) ", listed):
        lines += [f"## litefs {name}", "", "```text", printed(name, "--help"), "```", ""]
    return "\n".join(lines)
