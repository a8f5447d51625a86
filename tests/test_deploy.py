"""deploy/: the unit starts a node under its own restrictions; images and manifests hold together."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import kubernetes_validate
import pytest
import trio
import yaml

import litefs
from litefs.config import parse
from tests.server.support import FakeNode, client, serving
from tests.support.node import Node
from tests.support.processes import end, open_to_others, spawn, wait_until

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd/litefs.service"
APP = 10001
"""The user "app" of the image."""

FLY = {
    "FLY_APP_NAME": "a",
    "FLY_REGION": "fra",
    "PRIMARY_REGION": "fra",
    "FLY_MACHINE_ID": "m",
    "FLY_CONSUL_URL": "http://:t@consul:8500/p",
}


def settings_of(unit: Path) -> dict[str, list[str]]:
    """The lines of a unit by their key."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def on_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of Fly.io."""
    for name, value in FLY.items():
        monkeypatch.setenv(name, value)


# -- systemd ----------------------------------------------------------------------------------------------


def test_systemd_takes_the_unit_without_a_word(tmp_path: Path) -> None:
    program = shlex.split(settings_of(UNIT)["ExecStart"][0])[0]
    drop_in = tmp_path / "litefs.service.d"
    drop_in.mkdir()
    shutil.copy(DEPLOY / "systemd/confined.conf", drop_in)
    # The path of an installation that is not on this machine.
    (tmp_path / "litefs.service").write_text(UNIT.read_text().replace(program, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / "litefs.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line or "litefs" in line]


def test_the_unit_is_started_again_whatever_the_application_ends_with() -> None:
    """The node's exit code is the application's: a panic of Go is 2, as a wrong configuration."""
    unit = settings_of(UNIT)
    assert unit["Restart"] == ["always"]
    assert not [key for key in unit if key in ("RestartPreventExitStatus", "SuccessExitStatus")]
    assert unit["TimeoutStartSec"] == ["infinity"], "a recovery is as long as the databases are big"


class Manager:
    """A service manager, as far as it listens at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._said: set[str] = set()

    def heard(self, wanted: str) -> None:
        """Wait until that line was said."""
        deadline = time.monotonic() + 30
        while wanted not in self._said:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._said.update(self._socket.recv(4096).decode().splitlines())
            except TimeoutError:
                raise AssertionError(f"systemd was not told {wanted}, but {self._said}") from None

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(tmp_path / "notify")) as manager:
        yield manager


def probed() -> set[str]:
    """The paths of the API port that the files below deploy/ have somebody ask."""
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    kubernetes = {
        container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
    }
    compose = re.findall(r":20202(/\w+)'", (DEPLOY / "docker/compose.yaml").read_text())
    fly = tomllib.loads((DEPLOY / "fly/fly.toml").read_text())["checks"]["litefs"]["path"]
    assert compose
    return {*kubernetes, *compose, fly}


WRITE = """
import os, sqlite3, sys, time
assert os.getuid() == {app}
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE t (n)")
connection.execute("INSERT INTO t VALUES (1)")
time.sleep(600)
"""


def test_the_unit_runs_a_node_and_an_application_of_another_user(
    make_node: Callable[..., Node],
    manager: Manager,
    tmp_path: Path,
) -> None:
    """The unit's command, under its capabilities and limits, tells what ``Type=notify`` and ``WatchdogSec``
    ask for; the application is the one that deploy/docker/Dockerfile proposes, not root."""
    unit = settings_of(UNIT)
    assert unit["Type"] == ["notify"]
    node = make_node("node")
    node.configure("fuse", {"dir": str(node.mount), "allow-other": True, "uid": APP, "gid": APP})
    open_to_others(tmp_path)
    program, *arguments = shlex.split(unit["ExecStart"][0])
    assert program.endswith("/bin/litefs")
    assert arguments[:2] == ["mount", "-config"]
    capabilities = [
        word.removeprefix("CAP_").lower() for word in " ".join(unit["CapabilityBoundingSet"]).split()
    ]
    confine = ["setpriv", "--bounding-set", ",".join(["-all", *(f"+{name}" for name in capabilities)])]
    confine += ["--inh-caps", "-all", *(["--no-new-privs"] if unit["NoNewPrivileges"] == ["true"] else [])]
    application = ["setpriv", "--reuid", str(APP), "--regid", str(APP), "--clear-groups"]
    application += [sys.executable, "-c", WRITE.format(app=APP), node.path("app.db")]
    command = [*confine, sys.executable, "-m", "litefs.cli.main", "mount", "-config", str(node.config)]
    environment = {**os.environ, "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
    with node.log.open("ab") as log:
        process = node.process = spawn(
            [*command, "--", *application], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        manager.heard("STATUS=primary of term 1")
        manager.heard("READY=1")
        wait_until(
            lambda: (position := node.position("app.db")) is not None and position.txid >= 2,
            20,
            f"the application has committed\n{node.log_tail()}",
        )
        manager.heard("WATCHDOG=1")
        for path in probed():
            with urllib.request.urlopen(node.url + path, timeout=10) as response:
                assert response.status == 200, path
        process.send_signal(signal.SIGTERM)
        manager.heard("STOPPING=1")
        assert process.wait(10) == 0, node.log_tail()
    finally:
        if process.poll() is None:
            end(process)
        node.process = None


# -- images -----------------------------------------------------------------------------------------------


def stages(dockerfile: Path) -> list[list[str]]:
    """The instructions of each stage, a line each."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n", "", dockerfile.read_text()))
    return [part.splitlines() for part in re.split(r"(?m)^(?=FROM )", text)[1:]]


def installed(stage: list[str]) -> set[str]:
    """The Debian packages of a stage."""
    (line,) = [line for line in stage if "apt-get install" in line]
    words = line.partition("apt-get install")[2].partition("&&")[0].split()
    return {word for word in words if not word.startswith("-")}


def debian_package(library: str) -> str:
    """``libfuse3.so.3`` → ``libfuse3-3``: Debian Policy 8.1."""
    name, _, version = library.partition(".so.")
    return f"{name}{'-' if name[-1].isdigit() else ''}{version}"


def libraries(directory: Path) -> set[str]:
    """Shared libraries that compiled modules below a directory need from the system, but for libc's."""
    found = set()
    for module in directory.rglob("*.so"):
        done = subprocess.run(["ldd", str(module)], capture_output=True, text=True, timeout=30, check=True)
        found |= {line.split()[0] for line in done.stdout.splitlines() if "=> /" in line}
    return {name for name in found if re.match(r"lib(?!c\.|m\.|gcc_s|pthread|dl\.|rt\.)", name)}


def test_the_image_has_what_compiled_modules_need() -> None:
    pyfuse3 = distribution("pyfuse3").locate_file("pyfuse3")
    needed = libraries(Path(litefs.__path__[0]) / "_core") | libraries(Path(str(pyfuse3)))
    assert needed, "no compiled module was looked at"
    _, final = stages(DEPLOY / "docker/Dockerfile")
    assert {debian_package(name) for name in needed} <= installed(final)
    assert {"util-linux", "tini"} <= installed(final), "of ENTRYPOINT, and of the application's command"


def test_both_stages_have_the_same_python_and_the_readmes_packages() -> None:
    build, final = stages(DEPLOY / "docker/Dockerfile")
    assert build[0].split()[1] == final[0].split()[1], "a virtual environment is of one Python"
    readme = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"apt-get install (.*)", readme)[0].split())
    assert {name for name in listed if name.startswith("lib")} | {"gcc", "pkg-config"} <= installed(build)


def test_the_build_context_holds_what_is_copied() -> None:
    build, _ = stages(DEPLOY / "docker/Dockerfile")
    copied = {name for line in build if line.startswith("COPY") for name in line.split()[1:-1]}
    context = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert copied == context
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.usefixtures("on_fly")
def test_the_user_of_the_image_is_the_one_of_every_configuration() -> None:
    _, final = stages(DEPLOY / "docker/Dockerfile")
    assert any(f"useradd --system --uid {APP} " in line for line in final)
    for name, text in configurations().items():
        fuse = parse(text, name, {**FLY, "POD_NAMESPACE": "n", "POD_NAME": "p"}).fuse
        assert (fuse.uid, fuse.gid, fuse.allow_other) == (APP, APP, True), name


# -- what the files say of each other ---------------------------------------------------------------------


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes/litefs.yaml").read_text()))


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [document for document in manifests() if document["kind"] == kind]
    return found


def configurations() -> dict[str, str]:
    """Every litefs.yml below deploy/, by where it is."""
    found = {str(path.relative_to(ROOT)): path.read_text() for path in DEPLOY.rglob("litefs.yml")}
    return {**found, "deploy/kubernetes": manifest("ConfigMap")["data"]["litefs.yml"]}


def test_the_manifests_hold_to_the_schema() -> None:
    for document in manifests():
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_manifests_hold_together() -> None:
    config = parse(
        manifest("ConfigMap")["data"]["litefs.yml"], "k8s", {"POD_NAME": "p", "POD_NAMESPACE": "n"}
    )
    statefulset, service = manifest("StatefulSet")["spec"], manifest("Service")
    pod = statefulset["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    disrupted = manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"] == statefulset["selector"]["matchLabels"] == disrupted == labels
    assert statefulset["serviceName"] == service["metadata"]["name"]
    port = config.http.host_port[1]
    assert [one["containerPort"] for one in container["ports"]] == [port]
    assert config.lease.advertise_url == f"http://p.{service['metadata']['name']}.n.svc:{port}"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"config": "/etc/litefs.yml", "data": config.data.dir}


def test_a_long_recovery_is_not_killed() -> None:
    """A node answers no probe before its databases are recovered, and begins anew when it is killed."""
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600
    assert container["livenessProbe"]["httpGet"] == startup["httpGet"]


def test_the_compose_file_holds_to_the_schema() -> None:
    content = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(content, yaml.safe_load(schema.read_text()))
    nodes = {name: service for name, service in content["services"].items() if name.startswith("node")}
    assert len(nodes) == 3
    config = parse((DEPLOY / "docker/litefs.yml").read_text(), "compose", {"CONSUL_URL": "http://c:1"})
    # Without the lease's store nobody leads: it has to come back with the machine, as the nodes do.
    assert {service["restart"] for service in content["services"].values()} == {"unless-stopped"}
    for name, node in nodes.items():
        assert node["hostname"] == name
        assert f"{name}:{config.data.dir}" in node["volumes"]
        assert node["devices"] == ["/dev/fuse"]
        assert {"SYS_ADMIN", "SYS_PTRACE"} == set(node["cap_add"])
        assert node["ports"][0].endswith(f":{config.http.host_port[1]}")


@pytest.mark.usefixtures("on_fly")
def test_the_fly_example_holds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    app = tomllib.loads((DEPLOY / "fly/fly.toml").read_text())
    build = (DEPLOY / "fly/Dockerfile").read_text()
    assert "ARG LITEFS=" in build, "Fly's builders do not have an image of this machine"
    assert "FROM ${LITEFS}" in build
    config = parse((DEPLOY / "fly/litefs.yml").read_text(), "fly", FLY)
    assert app["mounts"]["destination"] == config.data.dir
    assert config.proxy.addr == f":{app['http_service']['internal_port']}"
    assert app["checks"]["litefs"]["port"] == config.http.host_port[1]
    assert config.lease.candidate
    assert config.lease.advertise_url == "http://m.vm.a.internal:20202"
    monkeypatch.setenv("FLY_REGION", "ams")
    assert not parse((DEPLOY / "fly/litefs.yml").read_text(), "fly", FLY).lease.candidate


# -- monitoring -------------------------------------------------------------------------------------------


def test_the_alerts_ask_for_metrics_that_a_node_has() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus/litefs.rules.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    named = {name for rule in alerts for name in re.findall(r"litefs_\w+", rule["expr"])}
    assert named

    async def metrics() -> str:
        with trio.fail_after(20):
            async with serving(FakeNode()) as url, client() as http:
                return (await http.get(f"{url}/metrics")).text

    assert named <= set(re.findall(r"(?m)^# TYPE (\w+) gauge", trio.run(metrics)))
    documented = re.findall(r"`(LiteFS\w+)`", (ROOT / "docs/operations.md").read_text())
    assert sorted(documented) == sorted(rule["alert"] for rule in alerts)
