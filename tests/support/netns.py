"""Network namespaces for tests of partitions: hosts on one switch, between which connections can be cut.

A :class:`Network` is one namespace that holds a bridge (the switch), and one for each host, joined to it by a
veth pair; nothing is added to the machine's own namespace. A cut is a permanent neighbour entry
(ip-neighbour(8)) that leads to an Ethernet address that nobody has: what is sent vanishes without a word, on
connections that are open as well as on new ones, in one direction or in both, with no packet filter.

Only the network is private: a program in a namespace sees the machine's mounts, so that a test can look at
the mount of a node that runs in one. (``ip netns exec`` would give it mounts of its own.)

Names carry the pid and the start time of the run that made them; :func:`reap` removes what a killed run left.
Everything needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeAlias, TypeVar

from tests.support.processes import wait_until

NAMES = Path("/run/netns")
PREFIX = "litefstest"
SUBNET = "10.73.0"
NOBODY = "02:00:00:00:00:fe"
"""A locally administered Ethernet address that no host has."""
MAX_HOSTS = 200
COMMAND_SECONDS = 10.0
CALL_SECONDS = 30.0

_CLONE_NEWNET = 0x40000000
_OWN = re.compile(rf"{PREFIX}-(\d+)-(\d+)-\d+-[\w.-]+")
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()

P = ParamSpec("P")
R = TypeVar("R")


class NetworkError(Exception):
    """``ip`` or ``tc`` refused; the message has its words."""


class DelayUnsupported(NetworkError):
    """This kernel cannot delay packets: it has no sch_netem."""


class Host:
    """A namespace with one interface, ``eth0``, and its loopback."""

    def __init__(self, name: str, namespace: str, address: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address

    def command(self, command: Sequence[str | os.PathLike[str]]) -> list[str]:
        """What to run so that ``command`` runs here, in the same process."""
        return ["nsenter", f"--net={NAMES / self.namespace}", "--", *map(os.fspath, command)]

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run ``function`` in a thread whose new sockets are here; its result, or its error."""
        results: list[R] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with (NAMES / self.namespace).open() as file:
                    if _libc.setns(file.fileno(), _CLONE_NEWNET):
                        number = ctypes.get_errno()
                        raise OSError(number, f"setns: {os.strerror(number)}")
                results.append(function(*args, **kwargs))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(CALL_SECONDS)
        assert not thread.is_alive(), f"no result within {CALL_SECONDS:g} s in {self.name}"
        if errors:
            raise errors[0]
        return results[0]


Hosts: TypeAlias = Host | Iterable[Host]


class Network:
    """A switch and its hosts; a context, which removes all of it and ends what still runs there."""

    def __init__(self) -> None:
        reap()
        self._stem = f"{PREFIX}-{os.getpid()}-{_start_time(os.getpid())}-{next(_serial)}"
        self._switch = f"{self._stem}-switch"
        self._hosts: list[Host] = []
        self._cuts: set[tuple[Host, Host]] = set()
        self._delayed: set[Host] = set()

    def __enter__(self) -> Network:
        _ip("netns", "add", self._switch)
        try:
            self._in_switch("link", "add", "bridge0", "type", "bridge")
            self._in_switch("link", "set", "bridge0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that are left in the namespaces and remove these."""
        for namespace in (*(host.namespace for host in self._hosts), self._switch):
            remove(namespace)
        self._hosts.clear()
        self._cuts.clear()

    def host(self, name: str) -> Host:
        """Add a host. Its name is for people; its address is in SUBNET."""
        number = len(self._hosts) + 1
        assert number <= MAX_HOSTS, "too many hosts"
        host = Host(name, f"{self._stem}-{number}{name}", f"{SUBNET}.{number}")
        self._hosts.append(host)
        port = f"port{number}"
        _ip("netns", "add", host.namespace)
        self._in_switch("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        self._in_switch("link", "set", port, "master", "bridge0", "up")
        for command in ("link set lo up", f"address add {host.address}/24 dev eth0", "link set eth0 up"):
            _ip("-n", host.namespace, *command.split())
        return host

    def partition(self, one: Hosts, other: Hosts) -> None:
        """Cut every host of ``one`` from every host of ``other``, both ways, silently."""
        for a, b in itertools.product(_each(one), _each(other)):
            self.cut(a, b)
            self.cut(b, a)

    def isolate(self, host: Host) -> None:
        """Cut a host from all others."""
        self.partition(host, [other for other in self._hosts if other is not host])

    def cut(self, sender: Host, receiver: Host) -> None:
        """What ``sender`` sends to ``receiver`` vanishes; the other way is as it was."""
        _ip(
            *("-n", sender.namespace, "neigh", "replace", receiver.address),
            *("lladdr", NOBODY, "nud", "permanent", "dev", "eth0"),
        )
        self._cuts.add((sender, receiver))

    def heal(self) -> None:
        """Undo every cut and every delay."""
        for sender, receiver in self._cuts:
            _ip("-n", sender.namespace, "neigh", "del", receiver.address, "dev", "eth0")
        self._cuts.clear()
        for host in self._delayed:
            _run("tc", "-n", host.namespace, "qdisc", "del", "dev", "eth0", "root")
        self._delayed.clear()

    def delay(self, host: Host, seconds: float, *, jitter: float = 0, loss: float = 0) -> None:
        """Delay what ``host`` sends by ``seconds`` ± ``jitter``, and lose the share ``loss`` (0 to 1) of it.

        Raises DelayUnsupported where the kernel has no netem (tc-netem(8)).
        """
        words = ["tc", "-n", host.namespace, "qdisc", "replace", "dev", "eth0", "root", "netem"]
        words += ["delay", f"{seconds * 1000:g}ms", f"{jitter * 1000:g}ms", "loss", f"{loss * 100:g}%"]
        try:
            _run(*words)
        except NetworkError as error:
            if "qdisc kind is unknown" in str(error):
                raise DelayUnsupported(str(error)) from error
            raise
        self._delayed.add(host)

    def _in_switch(self, *words: str) -> None:
        _ip("-n", self._switch, *words)


def reap() -> list[str]:
    """Remove the namespaces of runs that ended without doing so; returns their names."""
    found = []
    for namespace in sorted(os.listdir(NAMES)) if NAMES.is_dir() else []:
        match = _OWN.fullmatch(namespace)
        if match is not None and _start_time(int(match[1])) != int(match[2]):
            remove(namespace)
            found.append(namespace)
    return found


def own() -> list[str]:
    """The namespaces of this process that are there."""
    stem = f"{PREFIX}-{os.getpid()}-{_start_time(os.getpid())}-"
    return [name for name in (os.listdir(NAMES) if NAMES.is_dir() else []) if name.startswith(stem)]


def remove(namespace: str) -> None:
    """End the processes in a namespace of ours and remove it, with its interfaces; harmless if it is gone."""
    if not (NAMES / namespace).exists():
        return

    def ended() -> bool:
        pids = _run("ip", "netns", "pids", namespace).split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        return not pids

    wait_until(ended, COMMAND_SECONDS, f"the processes in {namespace} end")
    _ip("netns", "del", namespace)


def _start_time(pid: int) -> int:
    """When a process began, in clock ticks since the boot (proc(5), field 22 of stat); 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text[text.rindex(")") + 2 :].split()[19])


def _each(hosts: Hosts) -> list[Host]:
    return [hosts] if isinstance(hosts, Host) else list(hosts)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        raise NetworkError(f"{words[0]} is not installed: run make setup (package iproute2)") from None
    if done.returncode:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
