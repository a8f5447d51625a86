"""Debian's Chromium without a window, and a page in it that must stay clean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.support.processes import MARKER, wait_until

PATIENCE_MS = 15_000


class Visit:
    """A page of a node, with what went wrong in it and which hosts it asked."""

    def __init__(
        self, browser: Browser, url: str, *, width: int = 1280, height: int = 800, dark: bool = False
    ) -> None:
        self.url = url
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def _request(self, request: Request) -> None:
        self.hosts.add(urlsplit(request.url).netloc)

    def open(self) -> Visit:
        """Load the page."""
        self.page.goto(self.url + "/")
        return self

    def text(self, selector: str) -> str:
        """What stands at a place, as text."""
        return self.page.locator(selector).first.text_content() or ""

    def wait(self, condition: str, argument: object = None) -> None:
        """Until a function of JavaScript is true in the page."""
        wait_until(
            lambda: self.page.evaluate(condition, argument), PATIENCE_MS / 1000, f"page: {condition}", 0.1
        )

    def wait_text(self, selector: str, text: str) -> None:
        """Until ``text`` stands somewhere in that place."""
        wait_until(
            lambda: text in self.text(selector), PATIENCE_MS / 1000, f"page: {text!r} in {selector}", 0.1
        )

    def shoot(self, path: Path) -> None:
        """A picture of the whole page."""
        self.page.screenshot(path=path, full_page=True)

    def assert_clean(self) -> None:
        """No error or warning in the console, no other host asked, nothing beyond the window's right edge."""
        assert self.errors == []
        assert self.hosts == {urlsplit(self.url).netloc}
        self.assert_fits()

    def assert_fits(self) -> None:
        """Nothing of the page lies beyond the window's right edge."""
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.evaluate("innerWidth"), f"the page is {width} px wide"


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser of its own; ends with all its processes. Fails with what to do if Chromium is missing."""
    executable = shutil.which("chromium")
    assert executable, "no chromium: run tools/setup.sh, or apt-get install chromium"
    # Chromium refuses to run as root with its sandbox, and in containers has none to make.
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    # It may outlive a test, and then is nothing that the test left behind (tests/conftest.py). Its driver
    # ends with the pipe to this process.
    marker = os.environ.pop(MARKER)
    try:
        playwright = sync_playwright().start()
        browser = playwright.chromium.launch(executable_path=executable, args=arguments, timeout=30_000)
    finally:
        os.environ[MARKER] = marker
    try:
        yield browser
    finally:
        browser.close()
        playwright.stop()
