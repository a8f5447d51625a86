"""Runs a test suite written for unittest or pytest and notes the outcome of each test, one JSON line each.

    python suites_record.py OUT unittest MODULE-OR-SCRIPT [ARGUMENT...]
    python suites_record.py OUT unittest-apart MODULE-OR-SCRIPT [ARGUMENT...]
    python suites_record.py OUT pytest [ARGUMENT...]

A line of OUT is ``[test, outcome, detail]``. With ``unittest-apart`` each test has a new directory below the
current one as its current directory, so that what a test leaves behind cannot fail the next. All this runs
under the suite's own interpreter, needs only the standard library and pytest, and changes no file of a suite.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, TextIO

WORST_FIRST = ("error", "failed", "passed", "skipped")
"""Outcomes; of several notes about one test (its subtests, its teardown) the first in this order counts."""


class Notes:
    """The file of outcomes. A line is written at once: a suite may be killed at its time limit."""

    def __init__(self, path: str) -> None:
        self._file: TextIO = Path(path).open("w")  # noqa: SIM115 - open as long as the process lives

    def add(self, test: str, outcome: str, detail: str = "") -> None:
        print(json.dumps([test, outcome, detail[-4000:]]), file=self._file, flush=True)


def record_unittest(notes: Notes, program: str, arguments: list[str], *, apart: bool) -> None:
    """Run a script or a module as ``__main__``, whose runner is unittest's in whatever disguise."""
    top = Path.cwd()

    class Recorder(unittest.TextTestResult):
        def startTest(self, test: unittest.TestCase) -> None:
            if apart:
                own = top / f"t{self.testsRun}"
                own.mkdir()
                os.chdir(own)
            super().startTest(test)

        def addSuccess(self, test: unittest.TestCase) -> None:
            super().addSuccess(test)
            notes.add(test.id(), "passed")

        def addSkip(self, test: unittest.TestCase, reason: str) -> None:
            super().addSkip(test, reason)
            notes.add(test.id(), "skipped", reason)

        def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
            super().addExpectedFailure(test, err)
            notes.add(test.id(), "passed", "fails as expected")

        def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
            super().addUnexpectedSuccess(test)
            notes.add(test.id(), "failed", "unexpected success")

        def addFailure(self, test: unittest.TestCase, err: Any) -> None:
            super().addFailure(test, err)
            notes.add(test.id(), "failed", self.failures[-1][1])

        def addError(self, test: unittest.TestCase, err: Any) -> None:
            super().addError(test, err)
            notes.add(test.id(), "error", self.errors[-1][1])

        def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
            super().addSubTest(test, subtest, err)
            if err is not None:
                failed = issubclass(err[0], test.failureException)
                detail = (self.failures if failed else self.errors)[-1][1]
                notes.add(test.id(), "failed" if failed else "error", f"{subtest.id()}\n{detail}")

    unittest.TextTestRunner.resultclass = Recorder  # type: ignore[assignment]  # typeshed wants a function
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def record_pytest(notes: Notes, arguments: list[str]) -> int:
    """Run pytest in this process; returns its exit code."""
    import pytest

    class Recorder:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                outcome = "failed" if report.when == "call" else "error"
                notes.add(report.nodeid, outcome, report.longreprtext)
            elif report.skipped:
                notes.add(report.nodeid, "passed" if hasattr(report, "wasxfail") else "skipped")
            elif report.when == "call":
                notes.add(report.nodeid, "passed")

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                notes.add(report.nodeid, "error", report.longreprtext)

    return int(pytest.main(arguments, plugins=[Recorder()]))


def main() -> int:
    path, kind, *arguments = sys.argv[1:]
    notes = Notes(path)
    # Said outright: tempfile passes over a TMPDIR in which it cannot write a plain file.
    tempfile.tempdir = os.environ["TMPDIR"]
    if kind == "pytest":
        return record_pytest(notes, arguments)
    record_unittest(notes, arguments[0], arguments[1:], apart=kind == "unittest-apart")
    return 0


if __name__ == "__main__":
    sys.exit(main())
