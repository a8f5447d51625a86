"""``litefs version``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from litefs.cli.flags import UsageError, parse_flags

DISTRIBUTION = "litefs-fuse"
"""The name on the package index, where ``litefs`` is another project."""

USAGE = {"version": "Usage:\n\n  litefs version\n\nPrints the version."}


def version(argv: Sequence[str]) -> int:
    """Print the installed distribution's version. Raises UsageError."""
    if parse_flags((), argv).rest:
        raise UsageError("too many arguments")
    try:
        print(f"LiteFS v{metadata.version(DISTRIBUTION)}")
    except metadata.PackageNotFoundError:
        print("LiteFS development build")
    return 0
