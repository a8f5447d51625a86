"""The trace log: its lines, two writers, rotation."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from litefs import trace
from litefs.cli.flags import parse_flags
from litefs.cli.mount import _FLAGS, _configure
from litefs.errors import LiteFSError
from litefs.link.messages import TraceTo
from litefs.trace import Rotation, Tracer


def tracer(path: Path) -> Tracer:
    made = Tracer()
    made.setup(TraceTo(str(path)))
    return made


def test_a_line_has_the_form_of_go_litefs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Tracer()
    assert not one.enabled
    one.setup(TraceTo(str(tmp_path / "new" / "trace.log"), stdout=True))
    assert one.enabled
    one("Commit", "app.db", pos="0000000000000001/8000000000000000", pages=2)
    one.close()
    assert not one.enabled
    line = (tmp_path / "new" / "trace.log").read_text()
    assert re.fullmatch(
        r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} \[Commit\(app\.db\)\]: "
        r"pos=0000000000000001/8000000000000000 pages=2\n",
        line,
    )
    assert capsys.readouterr().out == line
    assert os.stat(tmp_path / "new" / "trace.log").st_mode & 0o777 == 0o600


def test_without_a_file_nothing_is_traced() -> None:
    one = Tracer()
    one.setup(TraceTo())
    assert not one.enabled


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(LiteFSError, match=r"tracing\.path: .* cannot be written"):
        tracer(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LiteFSError, match=r"tracing\.path"):
        tracer(tmp_path / "file" / "trace.log")


WRITER = """
import sys
from litefs.link.messages import TraceTo
from litefs.trace import Tracer
one = Tracer()
one.setup(TraceTo(sys.argv[1]))
for number in range(int(sys.argv[2])):
    one("Other", "b.db", number=number)
    if number % 10 == 9:
        print(flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("compress", [True, False])
def test_no_line_of_two_processes_is_lost_by_rotation(
    compress: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "MEGABYTE", 1024)
    monkeypatch.setattr(trace, "SETTLE_SECONDS", 0.01)
    path, rounds = tmp_path / "trace.log", 12
    own, rotation = tracer(path), Rotation(str(path), 1, 0, compress)
    line = [sys.executable, "-c", WRITER, str(path), str(10 * rounds)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for number in range(rounds):
            other.stdout.readline()
            for index in range(10):
                own("Own", "a.db", number=10 * number + index)
            rotation.look()
            other.stdin.write("\n")
            other.stdin.flush()
    own.close()
    rotated = rotation.rotated()
    assert len(rotated) > 3
    assert {one.suffix for one in rotated} == {".gz" if compress else ".log"}
    texts = [gzip.decompress(one.read_bytes()).decode() if compress else one.read_text() for one in rotated]
    lines = "".join([*texts, path.read_text() if path.exists() else ""]).splitlines()
    for name in ("Own", "Other"):
        numbers = [int(one.rpartition("=")[2]) for one in lines if f"[{name}(" in one]
        assert numbers == list(range(10 * rounds)), name


def test_so_many_old_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MEGABYTE", 100)
    monkeypatch.setattr(trace, "SETTLE_SECONDS", 0.002)
    path = tmp_path / "trace.log"
    (tmp_path / "trace-of-somebody.log").touch()
    own, rotation = tracer(path), Rotation(str(path), 1, 2, True)
    for number in range(5):
        own("Own", filler="x" * 100, number=number)
        rotation.look()
    own.close()
    kept = [gzip.decompress(one.read_bytes()).decode() for one in rotation.rotated()]
    assert [one.strip().rpartition("=")[2] for one in kept] == ["3", "4"]
    assert (tmp_path / "trace-of-somebody.log").exists()


def test_a_full_disk_loses_lines_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    full = tracer(Path("/dev/full"))
    full("Own", number=1)
    full("Own", number=2)
    full.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tracing: lines are lost: /dev/full: No space left on device"
    ]


def test_the_flag_writes_to_standard_output(tmp_path: Path) -> None:
    for flags, expected in (((), False), (("-tracing",), True), (("--tracing",), True)):
        config = _configure(parse_flags(_FLAGS, [*flags, "-dir", str(tmp_path / "mnt")]))
        assert config.tracing.stdout is expected


def test_standard_output_that_nobody_reads_fails_no_operation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with ``litefs mount -tracing | head``: a commit traces while it is under way."""
    read, write = os.pipe()
    one = Tracer()
    one.setup(TraceTo(str(tmp_path / "trace.log"), stdout=True))
    with open(write, "w", encoding="utf-8", closefd=False) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        os.close(read)
        one("Commit", "app.db", number=1)
        one("Commit", "app.db", number=2)
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), write)  # for what closing flushes
    os.close(write)
    assert one.enabled, "the file is still written"
    one.close()
    assert len((tmp_path / "trace.log").read_text().splitlines()) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "tracing: standard output is not written any more: Broken pipe"
    ]
