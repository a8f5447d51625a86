#!/usr/bin/env python
"""Runs large third-party test suites in a native directory and on a mount, and says which tests differ.

The mount is a primary's, a replica follows it, and in the end the replica has to have the same databases. Run
it by ``make suites``; packages and results are kept below build/suites.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from litefs.store.paths import decode_name  # noqa: E402
from tests.support.node import Node, pages_equal, wait_equal  # noqa: E402
from tests.support.processes import MARKER, ClientError, end, spawn  # noqa: E402
from tools.suites_catalog import QUICK, REQUIREMENTS, SOURCES, SUITES, Place, Suite  # noqa: E402
from tools.suites_record import WORST_FIRST  # noqa: E402

BUILD = ROOT / "build" / "suites"
RECORDER = ROOT / "tools" / "suites_record.py"
INSTALL_SECONDS = 600
CONVERGE_SECONDS = 30.0
SIDES = ("native", "mount")
SHOWN, SHOWN_WIDTH = 50, 300
"""Lines about one suite's differences, and their length; the results hold all."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a suite: outcome and detail by test, and what the process said."""

    outcomes: dict[str, tuple[str, str]]
    status: int | None
    """Exit code; None if it was ended at the time limit."""
    seconds: float
    output: Path

    def summary(self) -> str:
        count = Counter(outcome for outcome, _ in self.outcomes.values())
        text = ", ".join(f"{count[outcome]} {outcome}" for outcome in reversed(WORST_FIRST))
        return f"{text}; {self.seconds:.0f} s{', ENDED AT ITS TIME LIMIT' if self.status is None else ''}"


def install() -> Path:
    """Fetch the pinned packages once; returns the python of the suites' environment."""
    python = BUILD / "venv" / "bin" / "python"
    stamp = BUILD / "installed.json"
    wanted = json.dumps([REQUIREMENTS, SOURCES])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    archives, sources = BUILD / "archives", BUILD / "sources"
    sources.mkdir()
    pip = (str(python), "-m", "pip", "-q", "--disable-pip-version-check")
    download = ("download", "--no-binary", ":all:", "--no-deps", "--dest", str(archives))
    for command in (
        (sys.executable, "-m", "venv", str(BUILD / "venv")),
        (*pip, "install", *REQUIREMENTS),
        *((*pip, *download, source) for source in SOURCES),
    ):
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS)
    for archive in sorted(archives.glob("*.tar.gz")):
        shutil.unpack_archive(archive, sources, filter="data")
    stamp.write_text(wanted)
    return python


def run_suite(python: Path, suite: Suite, place: Place, quick: bool) -> Run:
    """Run a suite in ``place.databases``, within its time limit."""
    place.private.mkdir(parents=True)
    results, output = place.private / "results.jsonl", place.private / "output.txt"
    temporary = place.databases if suite.temporary_files_there else place.private / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "HYPOTHESIS_STORAGE_DIRECTORY": str(place.private / "hypothesis"),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(place.private),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }
    command = [str(python), str(RECORDER), str(results), *suite.command(place, quick)]
    began, status = time.monotonic(), None
    with output.open("wb") as log:
        process = spawn(
            command,
            cwd=place.databases,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(suite.seconds / 3 if quick else suite.seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end(process)
    return Run(_outcomes(results), status, time.monotonic() - began, output)


def _outcomes(results: Path) -> dict[str, tuple[str, str]]:
    """By test the worst of what was noted about it."""
    outcomes: dict[str, tuple[str, str]] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        test, outcome, detail = json.loads(line)
        known = outcomes.get(test)
        if known is None or WORST_FIRST.index(outcome) < WORST_FIRST.index(known[0]):
            outcomes[test] = (outcome, detail)
    return outcomes


class Census:
    """Watches a node's data directory: which databases existed at some time, also those removed since."""

    def __init__(self, node: Node) -> None:
        self.names: set[str] = set()
        self._directory = node.data / "dbs"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Census:
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.names.update(os.listdir(self._directory))

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def cluster(root: Path) -> Iterator[tuple[Node, Node]]:
    """A started primary with a replica below ``root``."""
    primary = Node(root, "primary")
    replica = Node(root, "replica", primary=primary)
    try:
        yield primary.start(), replica.start()
    finally:
        replica.discard()
        primary.discard()


def differing_databases(primary: Node, replica: Node) -> list[str]:
    """One line for each database on the primary that does not become equal on the replica."""
    problems = []
    for name in sorted(decode_name(encoded) for encoded in os.listdir(primary.data / "dbs")):
        try:
            position = primary.position(name)
            if position is not None and position.txid > 0:
                wait_equal(primary, replica, name, CONVERGE_SECONDS)
                pages_equal(primary, replica, name)
        except (AssertionError, ClientError) as error:
            problems.append(f"  {str(error).splitlines()[0]}")
    return problems


def compare(native: Run, mount: Run, explained: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    """For each test whose outcome differs, whether that has a known reason, and a line that tells it."""
    for test in sorted(native.outcomes.keys() | mount.outcomes.keys()):
        one = native.outcomes.get(test, ("not run", ""))
        other = mount.outcomes.get(test, ("not run", ""))
        if one[0] != other[0]:
            reason = explained.get(test)
            detail = (other[1] or one[1]).strip().splitlines() or [""]
            line = f"  {test}: native {one[0]}, mount {other[0]}: "
            yield reason is not None, line + (f"as explained: {reason}" if reason else detail[-1])


def examine(python: Path, suite: Suite, scratch: Path, quick: bool) -> bool:
    """Run one suite on both sides and print what came out. True if nothing differs unexplained."""
    root = scratch / suite.name
    native = Place(BUILD / "sources", root / "native", root / "private-native")
    native.databases.mkdir(parents=True)
    first = run_suite(python, suite, native, quick)
    print(f"{suite.name}: native {first.summary()}", flush=True)
    with cluster(root) as (primary, replica):
        with Census(primary) as census:
            second = run_suite(
                python, suite, Place(BUILD / "sources", primary.mount, root / "private-mount"), quick
            )
        problems = differing_databases(primary, replica)
        alive = primary.process is not None and primary.process.poll() is None
    print(f"{suite.name}: mount  {second.summary()}; {len(census.names)} databases seen", flush=True)
    for known, line in compare(first, second, suite.explained):
        if known:
            print(line, flush=True)
        else:
            problems.append(line)
    if not alive:
        problems.append("  the primary ended")
    if not census.names:
        problems.append("  no database was made on the mount")
    if not first.outcomes:
        problems.append(f"  no test ran:\n{first.output.read_text(errors='replace')[-2000:]}")
    for line in problems[:SHOWN]:
        print(line[:SHOWN_WIDTH], flush=True)
    if problems[SHOWN:]:
        print(f"  and {len(problems) - SHOWN} more: {BUILD / 'results'}", flush=True)
    for side, run in zip(SIDES, (first, second), strict=True):
        kept = BUILD / "results" / f"{suite.name}-{side}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        shutil.copy(run.output, kept)
        (kept / "outcomes.json").write_text(json.dumps(run.outcomes, indent=1))
    shutil.copy(primary.log, BUILD / "results" / f"{suite.name}-mount" / "node.log")
    return not problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a sample of three suites, within a minute")
    parser.add_argument("suites", nargs="*", help="names of suites (default: all)")
    options = parser.parse_args()
    known = {suite.name: suite for suite in SUITES}
    names = options.suites or (QUICK if options.quick else tuple(known))
    for name in names:
        if name not in known:
            parser.error(f"{name}: unknown, choose from {', '.join(known)}")
    os.environ.setdefault(MARKER, uuid.uuid4().hex)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the mounts go
    python = install()
    scratch = Path(tempfile.mkdtemp(prefix="litefs-suites-"))
    try:
        equal = [examine(python, known[name], scratch, options.quick) for name in names]
    finally:
        shutil.rmtree(scratch)
    print(f"{sum(equal)} of {len(equal)} suites as on a native directory", flush=True)
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
