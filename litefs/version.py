"""Which LiteFS this is."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "litefs-fuse"
"""The name on the package index, where ``litefs`` is another project."""


def version() -> str | None:
    """The installed distribution's version; None in a tree that was never installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
