"""Which LiteFS this is."""

from __future__ import annotations

from importlib import metadata, resources

DISTRIBUTION = "litefs-fuse"
"""The name on the package index, where ``litefs`` is another project."""

COMMIT_FILE = "COMMIT"
"""In this package once it was built (setup.py): the commit that it was built of."""


def version() -> str | None:
    """The installed distribution's version; None in a tree that was never installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit that this package was built of; None if the build was not told."""
    try:
        return resources.files("litefs").joinpath(COMMIT_FILE).read_text("ascii").strip()
    except FileNotFoundError:
        return None
