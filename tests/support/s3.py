"""A real S3 server (moto's) in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.node import free_port
from tests.support.processes import end, spawn, wait_until

START_SECONDS = 30.0
BUCKET = "leases"


@dataclass(frozen=True)
class S3:
    """A running server with one bucket. ``environment`` is what its clients need."""

    process: subprocess.Popen[Any]
    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def running(root: Path) -> Iterator[S3]:
    """A server that runs until the end of the block."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with (root / "s3.log").open("ab") as log:
        process = spawn(
            [sys.executable, "-m", "tests.support.clients.s3_server", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def has_bucket() -> bool:
        assert process.poll() is None, (root / "s3.log").read_text()[-2000:]
        try:
            request = urllib.request.Request(f"{endpoint}/{BUCKET}", b"", method="PUT")
            urllib.request.urlopen(request, timeout=5).close()
            return True
        except OSError:
            return False

    try:
        wait_until(has_bucket, START_SECONDS, "the S3 server has a bucket", 0.1)
        yield S3(process, endpoint)
    finally:
        end(process)
