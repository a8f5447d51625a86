"""Three nodes with a proxy each, and behind every proxy an unmodified Django project on the node's mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.node import Node, free_port, wait_present
from tests.support.processes import Client, children, wait_until

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b", "c")
DATABASE = "app.db"
ADMIN, PASSWORD = "admin", "correct horse battery"
CHANGE_SECONDS = 30.0
HOLD_SECONDS = 20
"""How long a proxy holds writes while there is no primary; a failover takes up to 8 s."""

_SETTINGS = """
import os
from stock.settings import *
DATABASES["default"]["NAME"] = os.environ["PRODUCT_DATABASE"]
DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 120}
ALLOWED_HOSTS = ["127.0.0.1"]
DEBUG = False
LOGGING = {
    "version": 1,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django.request": {"handlers": ["console"], "level": "ERROR"}},
}
"""
"""Over the settings of the stock project: where the database is, and what a deployment must set. Django's
notes on SQLite advise ``IMMEDIATE`` where several clients write: else one that has read before it writes is
told at once that the database is locked, on any file system. SQLite does not wait for locks in turn, so under
steady load some writer waits for many others."""


class Product:
    """The nodes, all running, their database migrated and with a superuser."""

    def __init__(self, root: Path) -> None:
        self._project = root / "project"
        self._project.mkdir()
        self._run("-m", "django", "startproject", "stock", str(self._project))
        (self._project / "product_settings.py").write_text(_SETTINGS)
        self.nodes: dict[str, Node] = {}
        self._ports = {name: (free_port(), free_port()) for name in NAMES}
        for name in NAMES:
            proxy, target = self._ports[name]
            self.nodes[name] = Node(
                root,
                name,
                proxy={
                    "addr": f"127.0.0.1:{proxy}",
                    "target": f"127.0.0.1:{target}",
                    "db": DATABASE,
                    "primary-redirect-timeout": f"{HOLD_SECONDS}s",
                },
                # What was answered must be there after a kill -9 of the primary.
                replication={"sync": "any"},
            )
            node = self.nodes[name]
            lease = {"type": "object", "hostname": name, "advertise-url": node.url, "candidate": True}
            node.configure("lease", {**lease, "object": {"url": f"file://{root}/lease"}})

    def start(self) -> None:
        """Start all, make the database and the superuser, and wait until every application answers."""
        for name in NAMES:
            self.launch(name)
        for node in self.nodes.values():
            node.wait_ready()
        primary = self.await_primary()
        with Client("sql", "sqlite3") as sql:
            sql.call("open", path=self.nodes[primary].path(DATABASE))
            sql.call("execute", statement="PRAGMA journal_mode=WAL")
        self.manage(primary, "migrate", "-v", "0")
        self.manage(primary, "createsuperuser", "--noinput", "--username", ADMIN, "--email", "a@example.org")
        for name, node in self.nodes.items():
            wait_present(node, DATABASE)
            self.await_application(name)

    def _environment(self, name: str) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "product_settings",
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
            "PRODUCT_DATABASE": self.nodes[name].path(DATABASE),
            "PRODUCT_NODE": name,
            "PYTHONPATH": f"{ROOT}:{self._project}",
        }

    def _run(self, *arguments: str, **variables: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def manage(self, name: str, *arguments: str) -> None:
        """One of Django's commands on a node's mount."""
        self._run(str(self._project / "manage.py"), *arguments, **self._environment(name))

    def launch(self, name: str) -> None:
        """Start a node, which starts the application."""
        server = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", str(self._ports[name][1]))
        quiet = ("--lifespan", "off", "--no-access-log", "--log-level", "warning")
        variables = (f"{key}={value}" for key, value in self._environment(name).items())
        application = "tests.product.application:application"
        self.nodes[name].launch("env", *variables, sys.executable, *server, *quiet, application)

    def await_application(self, name: str) -> None:
        """Until it answers through its proxy."""

        def answers() -> bool:
            try:
                return httpx.get(f"{self.url(name)}/admin/login/", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, CHANGE_SECONDS, f"{name} serves Django\n{self.nodes[name].log_tail()}", 0.1)

    def url(self, name: str) -> str:
        """Of a node's proxy."""
        return f"http://127.0.0.1:{self._ports[name][0]}"

    def primary(self) -> str | None:
        """The node that says so."""
        for name, node in self.nodes.items():
            if node.process is not None and (info := node.info()) and info["isPrimary"]:
                return name
        return None

    def await_primary(self, but: str = "") -> str:
        """The primary, once there is one other than ``but``."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [name for name in (self.primary(),) if name not in (None, but)]
            return bool(found)

        wait_until(look, CHANGE_SECONDS, "a primary", 0.02)
        return found[0]

    def await_replicas(self) -> str:
        """Until both others follow the primary and are in sync; its name."""

        def look() -> bool:
            name = self.primary()
            info = self.nodes[name].info() if name is not None else None
            return info is not None and len(info.get("inSync", ())) == len(NAMES) - 1

        wait_until(look, CHANGE_SECONDS, "two replicas in sync", 0.05)
        return self.await_primary()

    def replicas(self) -> list[str]:
        """The others, in the order of NAMES."""
        primary = self.await_replicas()
        return [name for name in NAMES if name != primary]

    def kill(self, name: str) -> None:
        """As if its machine died: both processes of the node, and the application."""
        node = self.nodes[name]
        assert node.process is not None
        applications = [pid for pid in children(node.process.pid) if pid != node.fs_pid()]
        node.kill("both")
        for pid in applications:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it is told to end when its node dies
                continue

    def query(self, name: str, statement: str) -> list[list[Any]]:
        """Rows of the database on a node's mount."""
        with Client("sql", "sqlite3") as sql:
            sql.call("open", path=self.nodes[name].path(DATABASE), readonly=True)
            return list(sql.call("execute", 30, statement=statement))

    @contextmanager
    def login(self, name: str, username: str = ADMIN) -> Iterator[httpx.Client]:
        """A browser's session in Django's admin, through a node's proxy."""
        with httpx.Client(base_url=self.url(name), timeout=30) as browser:
            form = {"username": username, "password": PASSWORD, "next": "/admin/"}
            answer = submit(browser, "/admin/login/", form)
            assert answer.status_code == 302, answer.text
            yield browser

    def discard(self) -> None:
        """End everything."""
        for node in self.nodes.values():
            node.discard()


def submit(browser: httpx.Client, path: str, form: dict[str, str]) -> httpx.Response:
    """Get a page of Django's and send its form."""
    page = browser.get(path)
    assert page.status_code == 200, page.text
    return browser.post(path, data=form, headers={"X-CSRFToken": browser.cookies["csrftoken"]})
