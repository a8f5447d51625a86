"""From what people write of an archive to its target."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from litefs.backup.directory import DirectoryTarget
from litefs.backup.target import Target
from litefs.config_backup import BackupConfig
from litefs.errors import ConfigError


def open_target(source: str) -> Target:
    """The archive at a URL or in a directory. Raises ConfigError."""
    url = urlsplit(source)
    if url.scheme not in ("", "file"):
        raise ConfigError(f"no archive can be at {source!r}")
    return DirectoryTarget(Path(unquote(url.path) if url.scheme else source).absolute())


def target_of(backup: BackupConfig) -> Target:
    """The archive of a node. Raises ConfigError."""
    if not backup.enabled:
        raise ConfigError("there is no backup section")
    return open_target(backup.directory or backup.location)
