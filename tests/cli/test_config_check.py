"""``litefs config check``."""

from __future__ import annotations

from pathlib import Path

import pytest

from litefs import config as configuration
from litefs.cli.config import effective
from tests.cli.support import litefs

FULL = """
exec:
  - {cmd: "sh -c 'x && y'", if-candidate: true, on-promote: USR1}
fuse: {dir: /tmp/x/mnt, mode: "0640", allow-other: true}
data: {dir: /tmp/x/data, retention: 1m30s}
http:
  addr: "127.0.0.1:1"
  auth-token: file:/tmp/token
replication:
  sync: any
  databases: [{name: "a*", sync: 2}, {name: b, sync: "off"}]
lease:
  type: consul
  hostname: "10"
  advertise-url: http://a:1
  consul: {url: "http://consul:8500", key: k}
backup: {type: file, path: /tmp/backup}
"""


def test_what_is_printed_reads_back_as_the_same() -> None:
    config = configuration.parse(FULL, "one", None)
    again = configuration.parse(effective(config), "other", None)
    assert again == config


def test_it_says_what_is_in_force(tmp_path: Path) -> None:
    path = tmp_path / "litefs.yml"
    path.write_text(
        f"lease: {{type: static, hostname: $NAME}}\nfuse: {{dir: {tmp_path}/mnt}}\n"
        f"data: {{dir: {tmp_path}/d}}\n"
        "http: {auth-token: sesame}\nbackup: {type: file, path: /b, auth-token: abracadabra}\n"
    )
    done = litefs("config", "check", "-config", path, NAME="me")
    assert done.status == 0
    assert done.out.startswith(f"# {path} can be used")
    assert "hostname: me\n" in done.out
    assert "retention: 10m0s\n" in done.out
    assert "sesame" not in done.out
    assert "abracadabra" not in done.out
    warnings = done.err.splitlines()
    assert any("the token travels unencrypted" in line for line in warnings)
    assert not list(tmp_path.glob("[!l]*")), "a check makes no directories"
    quiet = litefs("config", "check", "-quiet", "--no-expand-env", "-config", path)
    assert (quiet.status, quiet.out) == (0, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lease: {type: static}\nfuse: {dri: /x}\n",
            "litefs.yml:2:8: unknown key 'fuse.dri'; did you mean 'fuse.dir'?",
        ),
        ("lease: {type: statik}\n", "invalid lease type, must be one of"),
        (
            "lease: {type: static}\nhttp: {tls: {cert: /nonexistent/c, key: /nonexistent/k}}\n",
            "/nonexistent/c",
        ),
        ("", "the file is empty"),
    ],
)
def test_what_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "litefs.yml"
    path.write_text(text)
    done = litefs("config", "check", "-config", path)
    assert (done.status, done.out) == (2, "")
    assert message in done.err


def test_passwords_in_urls_are_masked() -> None:
    text = FULL.replace("http://consul:8500", "http://:t0ken@consul:8500")
    shown = effective(configuration.parse(text, "one", None))
    assert "t0ken" not in shown
    assert "http://:(secret)@consul:8500" in shown
