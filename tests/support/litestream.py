"""Archives restored by the real litestream where there is one, else by tests/support/slow_archive.py."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support import slow_archive

BUILD = Path(__file__).parents[2] / "tools" / "litestream" / "build.sh"
SECONDS = 60.0


@functools.cache
def litestream_binary() -> Path | None:
    """``LITESTREAM``, the one on PATH, or the one that ``make litestream`` built; None without any."""
    done = subprocess.run([str(BUILD), "--built"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 or "LITESTREAM" not in os.environ, done.stderr
    return Path(done.stdout.strip()) if done.returncode == 0 else None


def which() -> str:
    """What restores archives in this run, for its summary."""
    binary = litestream_binary()
    if binary is None:
        return "archives were restored by the tests' own reader: no litestream (make litestream)"
    done = subprocess.run([str(binary), "version"], capture_output=True, text=True, timeout=30)
    return f"archives were restored by litestream {done.stdout.strip()} ({binary})"


def timestamp(time: int) -> str:
    """Unix ms as litestream takes it."""
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time % 1000:03}Z"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """litestream with these arguments, bounded; without the environment's settings for it."""
    binary = litestream_binary()
    assert binary is not None
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LITESTREAM", "AWS_"))}
    return subprocess.run(
        [str(binary), *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=SECONDS
    )


def restore(
    root: Path, out: Path, txid: int | None = None, before: int | None = None, check: bool = True
) -> bytes:
    """The database file that is restored from the timeline in the directory ``root``; ``out`` is a name that
    is free; ``check``: it is one of SQLite's. Raises Unrestorable if the archive does not have it."""
    if litestream_binary() is None:
        return slow_archive.restore(root, txid, before)
    arguments = ["-integrity-check", "full" if check else "none", "-json", "-o", str(out)]
    if txid is not None:
        arguments += ["-txid", f"{txid:016x}"]
    if before is not None:
        arguments += ["-timestamp", timestamp(before)]
    done = run("restore", *arguments, f"file://{root}", cwd=out.parent)
    try:
        if done.returncode:
            assert "no matching backup files" in done.stderr, done.stderr
            raise slow_archive.Unrestorable(done.stderr)
        return out.read_bytes()
    finally:
        for path in (out, *out.parent.glob(f"{out.name}-*")):
            path.unlink(missing_ok=True)


def verify(root: Path) -> None:
    """Every file, by ``ltx verify`` where it lies beside litestream, and by the reference always."""
    files = slow_archive.scan(root)
    for file in files:
        data = file.path.read_bytes()
        ltx = slow_archive.read_ltx(data)
        assert (ltx.min_txid, ltx.max_txid, ltx.timestamp) == (file.min_txid, file.max_txid, file.created)
        index = slow_archive.read_index(data)
        assert [n for n, _, _ in index] == [n for n, _ in ltx.pages]
        for (pgno, offset, size), (_, page) in zip(index, ltx.pages, strict=True):
            assert slow_archive.frame(data, offset, ltx.page_size) == (
                pgno,
                data[offset : offset + (10 if data[offset + 5] else 6)],
                page,
                offset + size,
            )
    binary = litestream_binary()
    tool = binary.with_name("ltx") if binary is not None else None
    if tool is not None and tool.exists() and files:
        paths = [str(file.path) for file in files]
        done = subprocess.run([str(tool), "verify", *paths], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr


def listed(root: Path) -> list[dict[str, Any]]:
    """``litestream ltx -level all``."""
    done = run("ltx", "-level", "all", "-json", f"file://{root}", cwd=root)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
