"""A real Consul server: one process, ports of its own on loopback, ended by its pid."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.netns import Host
from tests.support.node import free_port
from tests.support.processes import end, pause, spawn, wait_until

BUILD = Path(__file__).parents[2] / "tools" / "consul" / "build.sh"
START_SECONDS = 30.0

_SETTINGS = """
disable_update_check = true
performance { raft_multiplier = 1 }
ports { dns = -1  grpc = -1  grpc_tls = -1  serf_wan = -1 }
"""


def consul_binary() -> str:
    """Path of the server. Fails with what to do if there is none."""
    done = subprocess.run([str(BUILD), "--built"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Consul:
    """A server with its data below ``root``; it can be stopped, killed, started again and paused.

    ``acl_token``: access needs a token, this one may do everything. ``tls``: it also serves ``https_url``, to
    clients with a certificate of its authority, as there is one in ``certificates``. ``host``: where it runs,
    None on the loopback of the tests.
    """

    def __init__(
        self,
        root: Path,
        *,
        acl_token: str = "",
        tls: bool = False,
        host: Host | None = None,
    ) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._ports = {name: free_port() for name in ("http", "server", "serf-lan")}
        self._host = host
        self._bind = bind = host.address if host is not None else "127.0.0.1"
        self._token = acl_token
        settings = _SETTINGS
        if acl_token:
            settings += (
                'acl { enabled = true  default_policy = "deny"  '
                f'tokens {{ initial_management = "{acl_token}" agent = "{acl_token}" }} }}\n'
            )
        if tls:
            self._ports["https"] = free_port()
            self.https_url = f"https://{bind}:{self._ports['https']}"
            self.certificates = root / "tls"
            settings += self._make_certificates()
        self._settings = root / "consul.hcl"
        self._settings.write_text(settings)
        self._process: subprocess.Popen[Any] | None = None
        self.address = f"{bind}:{self._ports['http']}"
        self.url = f"http://{self.address}"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Consul:
        """Start, and wait until it leads and answers."""
        assert self._process is None, "already running"
        command = [consul_binary(), "agent", "-server", "-bootstrap-expect=1", "-node=test"]
        command += [f"-bind={self._bind}", f"-client={self._bind}", f"-data-dir={self._root / 'data'}"]
        command += [f"-config-file={self._settings}"]
        command += [f"-{name}-port={port}" for name, port in self._ports.items()]
        if self._host is not None:
            command = self._host.command(command)
        with (self._root / "consul.log").open("ab") as log:
            self._process = spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self._leads, START_SECONDS, f"consul leads\n{self.log_tail()}", 0.05)
        return self

    def _make_certificates(self) -> str:
        """Have Consul's own tool make an authority, a server's and a client's certificate; the settings."""
        self.certificates.mkdir()
        for words in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
            line = [consul_binary(), "tls", *words]
            subprocess.run(line, cwd=self.certificates, check=True, capture_output=True, timeout=30)
        files = self.certificates
        return (
            f'tls {{ https {{ verify_incoming = true  ca_file = "{files}/consul-agent-ca.pem" '
            f'cert_file = "{files}/dc1-server-consul-0.pem" key_file = "{files}/dc1-server-consul-0-key.pem" '
            "} }\n"
        )

    def _leads(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"consul ended\n{self.log_tail()}"
        try:
            self.request("PUT", "/v1/kv/started", b"yes")
            return True
        except OSError:
            return False

    def request(self, method: str, path: str, body: bytes | None = None, timeout: float = 5) -> Any:
        """One request of Consul's HTTP API; the decoded answer, None for "no such key". Raises OSError."""
        if self._host is not None:
            return self._host.call(self._request, method, path, body, timeout)
        return self._request(method, path, body, timeout)

    def _request(self, method: str, path: str, body: bytes | None, timeout: float) -> Any:
        request = urllib.request.Request(self.url + path, body, method=method)
        if self._token:
            request.add_header("X-Consul-Token", self._token)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        assert self._process is not None
        self._process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP, until it stands still; go on with SIGCONT."""
        assert self._process is not None
        pause(self._process.pid)

    def kill(self) -> None:
        """kill -9; its data stay."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def log_tail(self) -> str:
        """The end of its log."""
        path = self._root / "consul.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""


@contextmanager
def running(root: Path, *, acl_token: str = "", tls: bool = False) -> Iterator[Consul]:
    """A server that runs until the end of the block, and is then gone however it is doing."""
    consul = Consul(root, acl_token=acl_token, tls=tls)
    try:
        yield consul.start()
    finally:
        consul.kill()
