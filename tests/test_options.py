"""What litefs.yml and flags say arrives where it is done: rows of docs/feature-parity.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from litefs.cli.main import main
from litefs.config import Config, parse
from litefs.link.rules import SyncRules
from litefs.node import Node
from litefs.starting import start_message
from litefs.store.paths import DataDir
from tests.cli.support import litefs

OPTIONS = """
strict-verify: true
data: {dir: /nowhere/data, compress: false}
fuse: {dir: /nowhere/mnt, allow-other: true, debug: true, uid: 5, gid: 6, mode: "0640"}
http: {snapshot-timeout: 7s}
lease: {type: static, grace: 9s}
log: {format: json, timestamp: true, debug: true}
"""


def test_the_fs_process_is_told_every_option(tmp_path: Path) -> None:
    config = parse(OPTIONS, "litefs.yml", None)
    rules = SyncRules(0, (), 1.0, False)
    told = start_message(config, DataDir(tmp_path), "/nowhere/mnt", 1, rules, replica=False)
    assert (told.strict_verify, told.compress, told.allow_other, told.debug) == (True, False, True, True)
    assert (told.uid, told.gid, told.mode, told.grace_ns) == (5, 6, 0o640, 9 * 10**9)
    assert (told.log.format, told.log.timestamp, told.log.debug) == ("json", True, True)


def test_a_node_keeps_to_the_time_of_a_snapshot(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        node = Node(parse(OPTIONS, "litefs.yml", None), DataDir(tmp_path), lock.fileno())
    assert node._shown.snapshot_seconds == 7


def test_mount_leaves_dollars_alone_if_told_to(tmp_path: Path) -> None:
    path = tmp_path / "litefs.yml"
    path.write_text('lease: {type: static}\nhttp: {addr: "$ADDRESS"}\n')
    for flags, named in (((), "nonsense"), (("-no-expand-env",), "$ADDRESS")):
        done = litefs("mount", *flags, "-config", path, ADDRESS="nonsense")
        assert done.status == 2
        assert named in done.err


@pytest.mark.parametrize("flag", ["-debug", "-fuse.debug"])
def test_flags_of_mount_switch_logs_on(tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "litefs.yml"
    path.write_text("lease: {type: static}\n")
    found: list[Config] = []

    def run(config: Config, *, command: list[str] | None) -> int:
        found.append(config)
        return 0

    monkeypatch.setattr("litefs.node.run", run)
    monkeypatch.setattr("litefs.logs.setup", lambda config: None)
    monkeypatch.setenv("HOSTNAME", "node")
    assert main(["mount", "-config", str(path), flag]) == 0
    (config,) = found
    assert (config.log.debug, config.fuse.debug) == (flag == "-debug", flag == "-fuse.debug")
