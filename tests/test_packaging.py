"""What `pip wheel .` and the source distribution contain, and that the wheel installs and answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD_SECONDS = 600
"""A bound, not an expectation: all kernels are compiled again."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""What the build is told: the copy of the tree has no repository."""

_LEFT_OUT = ("*.so", "*.c", "__pycache__", "*.egg-info", ".*")


def run(*argv: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's tree without anything built, as a fresh clone has it."""
    tree = tmp_path_factory.mktemp("source") / "litefs"
    tree.mkdir()
    for name in ("litefs", "tests", "tools", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree / path.name)
    return tree


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the tools of this environment: the build needs no network."""
    target = tmp_path_factory.mktemp("wheel")
    # Quick to compile: what is tested is the packing.
    environment = {**os.environ, "CFLAGS": "-O0", "LITEFS_COMMIT": COMMIT}
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, ".")
    run(*pip, cwd=source, environment=environment)
    (built,) = target.glob("*.whl")
    return built


def kernels(source: Path) -> set[str]:
    return {path.stem for path in (source / "litefs/_core").glob("*.pyx")}


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_wheel_holds_all_modules_and_kernels(source: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(source)) for path in (source / "litefs").rglob("*.py")}
    assert modules <= names
    compiled = {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    assert compiled == kernels(source)
    assert {f"litefs/_core/{kernel}.pyi" for kernel in kernels(source)} <= names
    assert "litefs/py.typed" in names
    assert not [name for name in names if name.endswith((".c", ".pyx")) or not name.startswith("litefs")]


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_wheel_installs_in_a_clean_environment(source: Path, wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    output = run(tmp_path / "venv/bin/litefs", "version", cwd=tmp_path, environment=environment)
    assert output == f"LiteFS v{version}, commit={COMMIT}\n"
    alone = kernels(source) - {"fuseloop", "openinfo"}  # these import trio and pyfuse3
    imports = "; ".join(f"import litefs._core.{kernel}" for kernel in sorted(alone))
    run(python, "-c", imports, cwd=tmp_path, environment=environment)


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_source_distribution_can_be_built_from(source: Path, tmp_path: Path) -> None:
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    run(sys.executable, "-c", code, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    core = [
        path for path in (source / "litefs/_core").iterdir() if path.suffix in (".pyx", ".pxd", ".pyi", ".h")
    ]
    assert {str(path.relative_to(source)) for path in core} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "tools/setup.sh"} <= names
    assert not [name for name in names if name.endswith((".so", ".c"))]
