"""Fuzz everything that is read from outside, for as long as wanted. The targets are those of tests/fuzz.

    python tools/fuzz.py [--seconds S] [--seed N] [--target NAME ...] [--engine seeded|atheris] [--save DIR]
    python tools/fuzz.py --replay DIR/NAME-xxxx.bin ...

``seeded`` mutates valid inputs by a random generator whose seed is printed. ``atheris`` is guided by the
coverage of the Python code and needs the package of that name; the kernels are not instrumented for it, see
tools/fuzz_sanitize.py. An input that breaks a promise is saved, named, and ends the run with status 1; one
that kills the process is left in DIR/NAME-running.bin.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

HANG_SECONDS = 60
"""Wall-clock time after which an input counts as hanging; the CPU time it may take is much less."""
SLICE_SECONDS = 0.5
"""The targets take turns of this length."""
MEMORY_MEGABYTES = 1024
MAX_STEPS = 6


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    summary, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--target", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--engine", choices=("seeded", "atheris"), default="seeded")
    parser.add_argument("--save", type=Path, default=Path(".fuzz"), help="where failing inputs go")
    parser.add_argument("--replay", type=Path, nargs="+", default=[], help="run saved inputs instead")
    parser.add_argument(
        "--unbounded",
        action="store_true",
        help="set no limit of memory; a sanitizer needs terabytes of addresses",
    )
    return parser.parse_args(arguments)


class Running:
    """The input that is running, in a file that survives the process. A context; a clean end removes it."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / f"{name}-running.bin"
        self._name = name
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def begin(self, data: bytes) -> None:
        """``data`` is run from now on; if it takes too long, the process ends with a traceback."""
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)

    def failed(self, data: bytes) -> Path:
        """Keep a failing input under a name of its own."""
        path = self._path.with_name(f"{self._name}-{hashlib.sha256(data).hexdigest()[:12]}.bin")
        path.write_bytes(data)
        return path

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.close(self._fd)
        self._path.unlink(missing_ok=True)


def run_turn(name: str, rng: random.Random, seconds: float, directory: Path) -> tuple[int, int]:
    """One target for some time: (inputs, accepted). Raises what breaks a promise, after saving the input."""
    from tests.fuzz.mutation import KINDS, mutate
    from tests.fuzz.target import check
    from tests.fuzz.targets import BY_NAME

    target = BY_NAME[name]
    rounds = accepted = 0
    end = time.monotonic() + seconds
    with Running(directory, name) as running:
        while time.monotonic() < end:
            steps = [
                (rng.randrange(KINDS), rng.getrandbits(32), rng.getrandbits(32))
                for _ in range(rng.randint(1, MAX_STEPS))
            ]
            data = mutate(rng.choice(target.seeds), steps, target.seeds, target.words)
            if rng.random() < 0.5:
                data = target.repair(data)
            running.begin(data)
            try:
                accepted += check(target, data)
            except Exception:
                print(f"{name}: see {running.failed(data)}", file=sys.stderr)
                raise
            rounds += 1
    return rounds, accepted


def run_seeded(names: Sequence[str], seed: int, seconds: float, directory: Path) -> int:
    """The targets in turns. Returns the exit status."""
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    totals = {name: [0, 0] for name in names}
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for name in names:
            try:
                rounds, accepted = run_turn(name, rng, min(SLICE_SECONDS, left), directory)
            except Exception:
                traceback.print_exc()
                print(f"seed {seed}", file=sys.stderr)
                return 1
            totals[name][0] += rounds
            totals[name][1] += accepted
    for name, (rounds, accepted) in totals.items():
        print(f"{name:16} {rounds:9} inputs, {accepted} accepted")
    return 0


def run_atheris(name: str, seed: int, seconds: float, directory: Path) -> int:
    """One target under libFuzzer, which ends the process; its corpus is thrown away."""
    atheris = importlib.import_module("atheris")  # by name: it is not among the packages for development
    from litefs._core import crc64  # the kernels first: there is nothing in them to instrument

    assert crc64.backend()
    with atheris.instrument_imports(include=["litefs"]):
        from tests.fuzz.targets import BY_NAME
    from tests.fuzz.mutation import KINDS, mutate
    from tests.fuzz.target import check

    target = BY_NAME[name]

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            changed = bytes(atheris.Mutate(data, max_size))
        else:
            step = (rng.randrange(KINDS), rng.getrandbits(32), rng.getrandbits(32))
            changed = mutate(data, [step], target.seeds, target.words)
        return (target.repair(changed) if rng.random() < 0.5 else changed)[:max_size]

    directory.mkdir(parents=True, exist_ok=True)
    corpus = tempfile.mkdtemp(prefix=f"litefs-fuzz-{name}-")
    for number, data in enumerate(target.seeds):
        Path(corpus, str(number)).write_bytes(data)
    options = [
        f"-max_total_time={max(1, int(seconds))}",
        f"-seed={seed & 0x7FFFFFFF or 1}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MEMORY_MEGABYTES}",
        f"-artifact_prefix={directory}/{name}-",
        "-max_len=65536",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, corpus], lambda data: check(target, data), custom_mutator=mutator)
    atheris.Fuzz()
    return 0


def run_each_by_atheris(names: Sequence[str], seed: int, seconds: float, directory: Path) -> int:
    """A process for every target, one after the other. Returns the exit status."""
    for name in names:
        print(f"{name}: seed {seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="litefs-fuzz-") as scratch:
            command = [sys.executable, __file__, "--engine", "atheris", "--target", name, "--seed", str(seed)]
            command += ["--seconds", str(seconds / len(names)), "--save", str(directory)]
            limit = seconds / len(names) + 2 * HANG_SECONDS
            done = subprocess.run(command, env={**os.environ, "TMPDIR": scratch}, timeout=limit)
        if done.returncode:
            print(f"{name}: failed, see {directory}; seed {seed}", file=sys.stderr)
            return 1
    return 0


def replay(paths: Sequence[Path]) -> int:
    """Run saved inputs. Returns the exit status."""
    from tests.fuzz.target import check
    from tests.fuzz.targets import BY_NAME

    for path in paths:
        name = max((name for name in BY_NAME if path.name.startswith(f"{name}-")), key=len)
        accepted = check(BY_NAME[name], path.read_bytes())
        print(f"{path}: {'accepted' if accepted else 'refused'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the module's text says."""
    options = parse_arguments(arguments)
    if options.replay:
        return replay(options.replay)
    if options.engine == "atheris" and len(options.target) == 1:
        return run_atheris(options.target[0], options.seed, options.seconds, options.save)
    from tests.fuzz.target import bounded_memory
    from tests.fuzz.targets import BY_NAME

    names = options.target or list(BY_NAME)
    if options.engine == "atheris":
        return run_each_by_atheris(names, options.seed, options.seconds, options.save)
    limit: contextlib.AbstractContextManager[None] = bounded_memory()
    with contextlib.nullcontext() if options.unbounded else limit:
        return run_seeded(names, options.seed, options.seconds, options.save)


if __name__ == "__main__":
    sys.exit(main())
