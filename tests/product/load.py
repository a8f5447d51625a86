"""Load by wrk: many requests at a time, each write with a name of its own, and what was answered to which."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx

from tests.support.processes import end, spawn

SCRIPT = Path(__file__).with_name("load.lua")


class Load:
    """``count`` requests to ``browser``'s URL with its session, three of four of them writes, over so many
    connections; all are done within ``seconds``."""

    def __init__(
        self,
        browser: httpx.Client,
        prefix: str,
        directory: Path,
        *,
        count: int,
        connections: int,
        seconds: float,
    ) -> None:
        tool = shutil.which("wrk")
        assert tool, "no wrk: run tools/setup.sh, or apt-get install wrk"
        self._prefix = prefix
        self._files = [directory / f"{prefix}.{number}" for number in range(connections)]
        self._deadline = time.monotonic() + seconds
        self._log = (directory / f"{prefix}.out").open("wb")
        cookies = "; ".join(f"{key}={browser.cookies[key]}" for key in ("sessionid", "csrftoken"))
        threads = (
            f"-t{connections}",
            f"-c{connections}",
            f"-d{int(seconds)}s",
            "--timeout",
            f"{int(seconds)}s",
        )
        quota, files = str(count // connections), str(directory / prefix)
        arguments = (prefix, quota, cookies, browser.cookies["csrftoken"], files)
        command = [tool, *threads, "-s", str(SCRIPT), str(browser.base_url), "--", *arguments]
        self._process = spawn(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT)

    def lines(self) -> list[list[str]]:
        """All that was noted so far."""
        texts = [file.read_text() for file in self._files if file.exists()]
        return [line.split() for text in texts for line in text.splitlines() if line.count(" ") == 1]

    @property
    def answered(self) -> int:
        """How many answers there were."""
        return sum(what.isdigit() for _, what in self.lines())

    def await_answers(self, count: int) -> None:
        """Until that many were answered."""
        while self.answered < count:
            assert time.monotonic() < self._deadline, f"{self.answered} of {count} requests were answered"
            assert self._process.poll() is None, "wrk ended early"
            time.sleep(0.05)

    def finish(self) -> dict[str, int | None]:
        """Wait until every connection has had its answers; returns the status of each request by its name,
        None where there was no answer."""
        while sum(what == "done" for _, what in self.lines()) < len(self._files):
            assert time.monotonic() < self._deadline, f"only {self.answered} requests were answered"
            assert self._process.poll() is None, "wrk ended early"
            time.sleep(0.05)
        self.close()
        asked: dict[str, int | None] = {}
        for number, file in enumerate(self._files):
            for line in file.read_text().splitlines():
                name, what = line.split()
                key = f"{number}/{name}" if name.startswith("read") else name
                if what == "asked":
                    asked[key] = None
                elif what != "done":
                    asked[key] = int(what)
        return asked

    def close(self) -> None:
        """End wrk, which by itself would wait for its time to pass."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        end(self._process)
        self._log.close()
