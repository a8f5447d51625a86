"""Every command says what it takes, and the shell completes what it says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from litefs.cli.completion import SHELLS, specs
from litefs.cli.main import COMMANDS, main
from litefs.cli.version import describe

NAMES = [command.name for command in COMMANDS]
BASH_SECONDS = 20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_each_command(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As in Go: on stderr, status 2."""
    assert main([name, flag]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith(f"Usage:\n\n  litefs {name}")
    for one in specs()[name].flags:
        assert f"\n  -{one.name}{f' {one.metavar}' if one.metavar else ''}\n" in captured.err
    for word in specs()[name].words:
        assert word in captured.err
    assert max(map(len, captured.err.splitlines())) <= 120


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 2
    listed = [line.split()[0] for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert set(NAMES) <= set(listed)


@pytest.mark.parametrize(
    ("version", "commit", "line"),
    [
        ("1.2", "abc", "LiteFS v1.2, commit=abc"),
        ("1.2", None, "LiteFS v1.2, commit=unknown"),
        (None, "abc", "LiteFS commit=abc"),
        (None, None, "LiteFS development build"),
    ],
)
def test_the_shapes_of_version(version: str | None, commit: str | None, line: str) -> None:
    assert describe(version, commit) == line


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The completion script for bash."""
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "litefs.bash"
    path.write_text(capsys.readouterr().out)
    return path


def bash(code: str, cwd: Path) -> str:
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "--norc", "-u", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=BASH_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bash_completes(script: Path, tmp_path: Path) -> None:
    (tmp_path / "a file.db").touch()
    (tmp_path / "etc").mkdir()
    cases = {
        "": NAMES,
        "ex": ["export"],
        "import -na": ["-name"],
        "import --na": ["--name"],
        "import -name ": [],
        "import -config et": ["etc"],
        "import --config et": ["etc"],
        "import -name x a": ["a file.db"],
        "mount -dir ": ["etc"],
        "run -with": ["-with-halt-lock-on"],
        "ltx ": ["list", "show", "verify"],
        "ltx verify -d": ["-data"],
        "completion f": ["fish"],
        "nonsense x": [],
    }
    code = f". {script}; complete -p litefs\n"
    for line in cases:
        words = " ".join(f"'{word}'" for word in ["litefs", *line.split(" ")])
        code += (
            f"COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _litefs\n"
            'printf "%s|" "${COMPREPLY[@]:+${COMPREPLY[@]}}"; echo\n'
        )
    registered, *found = bash(code, tmp_path).splitlines()
    assert registered == "complete -F _litefs litefs"
    completed = {
        line: [word for word in words.split("|") if word] for line, words in zip(cases, found, strict=True)
    }
    assert completed == cases


@pytest.mark.parametrize("shell", SHELLS)
def test_every_flag_is_in_every_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, spec in specs().items():
        assert name in script
        for flag in spec.flags:
            assert (f"-o {flag.name} " if shell == "fish" else f"-{flag.name}") in script
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=script, text=True, timeout=BASH_SECONDS, check=True)
