"""The wheel, installed in a clean environment, mounts and commits."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.node import Node
from tests.support.processes import Client, spawn
from tests.test_packaging import BUILD_SECONDS, run, source, wheel

__all__ = ["source", "wheel"]


@pytest.mark.timeout(BUILD_SECONDS)
def test_installed_wheel_mounts(
    wheel: Path, tmp_path: Path, make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin/python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies come from this environment (there is no network), the project only from the wheel.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import litefs; print(litefs.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(home)

    node = make_node("primary")
    with node.log.open("ab") as log:
        command = [str(home / "bin/litefs"), "mount", "-config", str(node.config)]
        node.process = spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=tmp_path)
    node.wait_ready()
    client = make_client("sql", "sqlite3")
    client.call("open", path=node.path("app.db"))
    client.call(
        "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"]
    )
    position = node.position("app.db")
    assert position is not None
    assert position.txid >= 2
    assert node.stop() == 0
