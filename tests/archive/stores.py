"""Where the archive is in the tests, and how it fails: a directory on a file system of its own that fills up,
and an S3 server behind a proxy that drops, refuses, delays, and loses answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from tests.support import faulty_s3, s3
from tests.support.disks import small_disk
from tests.support.faulty_s3 import Proxy

KINDS = ("directory", "s3")
DIRECTORY_MEGABYTES = 2048 if "LITEFS_SOAK" in os.environ else 256


Mode = Literal[faulty_s3.Mode, "full"]
"""Of a bucket as there; ``full``: the directory's disk is."""


class Store(Protocol):
    """``url``: for who looks at it; ``backup``: the section of litefs.yml, by which it fails."""

    url: str
    backup: dict[str, Any]
    modes: tuple[Mode, ...]
    environment: dict[str, str]

    def fail(self, mode: Mode) -> None:
        """Have it fail in that way from now on; empty: not any more."""


class Directory:
    """A small tmpfs, and a file that fills it."""

    modes: tuple[Mode, ...] = ("full",)

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"file://{path}/archive"
        self.backup: dict[str, Any] = {"type": "file", "path": f"{path}/archive"}
        self.environment: dict[str, str] = {}

    def fail(self, mode: Mode) -> None:
        """See Store."""
        ballast = self._path / "ballast"
        if not mode:
            ballast.unlink(missing_ok=True)
            return
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(64 << 10))


class Bucket:
    """moto's server, and the proxy before it."""

    modes: tuple[Mode, ...] = ("drop", "503", "slow", "lost")

    def __init__(self, server: s3.S3, proxy: Proxy) -> None:
        self._proxy = proxy
        query = "region=us-east-1&forcePathStyle=true"
        self.url = f"s3://{s3.BUCKET}/archive?endpoint={server.endpoint}&{query}"
        keys = {name: server.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        self.backup: dict[str, Any] = {
            "url": f"s3://{s3.BUCKET}/archive?endpoint={proxy.endpoint}&{query}",
            "access-key-id": keys["AWS_ACCESS_KEY_ID"],
            "secret-access-key": keys["AWS_SECRET_ACCESS_KEY"],
        }
        self.environment = keys

    def fail(self, mode: Mode) -> None:
        """See Store."""
        self._proxy.mode = mode


@contextmanager
def store(kind: str, root: Path) -> Iterator[Store]:
    """A store of that kind, empty, until the end of the block."""
    if kind == "directory":
        with small_disk(root / "store", DIRECTORY_MEGABYTES) as path:
            yield Directory(path)
        return
    with s3.running(root) as server, faulty_s3.before(server.endpoint) as proxy:
        yield Bucket(server, proxy)
