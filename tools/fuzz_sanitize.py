"""Run kernel tests and fuzz targets on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tools/fuzz_sanitize.py [--seconds S] [--seed N] [--save DIR] [-- PYTEST_ARGUMENT ...]

The sources are copied to a scratch directory and compiled there; the tree and its kernels stay as they are.
The interpreter itself is not instrumented: ``PYTHONMALLOC=malloc`` gives every bytes object borders that
AddressSanitizer watches, and leaks are not looked for (Python leaves plenty at exit).
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
TESTS = ("tests/kernels", "tests/ltx/test_records.py", "tests/fuzz")
BUILD_SECONDS = 900
TEST_SECONDS = 1800
LIBRARIES = ("libasan.so", "libubsan.so")


def build(scratch: Path) -> None:
    """Copy the sources and compile the kernels with both sanitizers. Raises CalledProcessError."""
    ignore = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    for name in ("litefs", "tests", "tools"):
        shutil.copytree(ROOT / name, scratch / name, ignore=ignore)
    sources = sorted((scratch / "litefs/_core").glob("*.pyx"))
    # The kernels ask for -O3, which stands behind these flags and would hide frames of a report.
    for source in sources:
        source.write_text(
            source.read_text(encoding="utf-8").replace("extra_compile_args = -O3", "language = c")
        )
    command = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-3", "-q"]
    command += [str(source.relative_to(scratch)) for source in sources]
    environment = {**os.environ, "CFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined"}
    subprocess.run(command, cwd=scratch, env=environment, check=True, timeout=BUILD_SECONDS)
    shutil.copy(ROOT / "pyproject.toml", scratch)  # pytest's settings; to the build it would be a package


def library(name: str) -> str:
    """Path of a sanitizer's runtime, which has to be loaded before Python. Raises FileNotFoundError."""
    command = [os.environ.get("CC", "gcc"), f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    if not os.path.isabs(found):
        raise FileNotFoundError(f"the compiler has no {name}; Debian has it in libgcc-12-dev")
    return os.path.realpath(found)


def sanitized_environment(scratch: Path) -> dict[str, str]:
    """Environment of a Python that runs the instrumented kernels."""
    asan = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=512:abort_on_error=1"
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(map(library, LIBRARIES)),
        "ASAN_OPTIONS": asan,
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(scratch),
    }


def run(scratch: Path, seconds: float, seed: int, save: Path, arguments: Sequence[str]) -> int:
    """The tests, then the seeded fuzzer. Returns the first exit status that is not 0."""
    environment = sanitized_environment(scratch)
    probe = f"import litefs._core.crc64 as m; assert m.__file__.startswith({str(scratch)!r}), m.__file__"
    # A report is written to the descriptor of stderr, so pytest must not capture that.
    pytest = ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *(arguments or TESTS)]
    fuzz = [
        "tools/fuzz.py",
        "--unbounded",
        "--seconds",
        str(seconds),
        "--seed",
        str(seed),
        "--save",
        str(save),
    ]
    for command, limit in ((["-c", probe], 60.0), (pytest, TEST_SECONDS), (fuzz, seconds + TEST_SECONDS)):
        done = subprocess.run(
            [sys.executable, *command], cwd=scratch, env=environment, stdin=subprocess.DEVNULL, timeout=limit
        )
        if done.returncode:
            return done.returncode
    return 0


def main() -> int:
    """Run as the module's text says."""
    summary, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--seconds", type=float, default=60.0, help="of fuzzing, after the tests")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--save", type=Path, default=ROOT / ".fuzz", help="where failing inputs go")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest in place of the default tests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="litefs-sanitize-") as scratch:
        build(Path(scratch))
        return run(Path(scratch), options.seconds, options.seed, options.save.resolve(), options.pytest)


if __name__ == "__main__":
    sys.exit(main())
