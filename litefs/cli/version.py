"""``litefs version``."""

from __future__ import annotations

from collections.abc import Sequence

from litefs import version as installed
from litefs.cli.flags import UsageError, parse_flags

USAGE = {"version": "Usage:\n\n  litefs version\n\nPrints the version."}


def version(argv: Sequence[str]) -> int:
    """Print the installed distribution's version. Raises UsageError."""
    if parse_flags((), argv).rest:
        raise UsageError("too many arguments")
    found = installed.version()
    print("LiteFS development build" if found is None else f"LiteFS v{found}")
    return 0
