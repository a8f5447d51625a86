"""``litefs version``, in the three shapes of Go LiteFS."""

from __future__ import annotations

from collections.abc import Sequence

from litefs import version as installed
from litefs.cli.flags import Spec, UsageError, parse_flags

USAGE = {"version": "Usage:\n\n  litefs version\n\nPrints the version."}
SPECS = {"version": Spec()}


def version(argv: Sequence[str]) -> int:
    """Print version and commit. Raises UsageError."""
    if parse_flags((), argv).rest:
        raise UsageError("too many arguments")
    print(describe(installed.version(), installed.commit()))
    return 0


def describe(version: str | None, commit: str | None) -> str:
    """One line for the version and the commit that are known."""
    if version:
        return f"LiteFS v{version}, commit={commit or 'unknown'}"
    return f"LiteFS commit={commit}" if commit else "LiteFS development build"
