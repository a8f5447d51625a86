"""What goes wrong first for somebody new, tried with real processes: each message says what to do next."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from litefs.fs.session import find_mount
from tests.cli.support import LITEFS, SECONDS, Done, litefs
from tests.support.node import Node, free_port
from tests.support.processes import end, spawn, wait_until

NOT_ROOT = ("setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin")
"""As root is in a container without privileges."""
NOT_OTHERS = (
    "setpriv",
    "--inh-caps=-dac_override,-dac_read_search",
    "--bounding-set=-dac_override,-dac_read_search",
)
"""To files of others, as any user is."""
NOBODY = 65534


class Place:
    """A directory with a ``litefs.yml`` of one node as a newcomer writes it."""

    def __init__(self, root: Path) -> None:
        self.root, self.mount, self.data = root, root / "mnt", root / "data"
        self.config = root / "litefs.yml"
        self.port = free_port()
        self.write()

    def write(self, **sections: object) -> None:
        settings = {
            "fuse": {"dir": str(self.mount)},
            "data": {"dir": str(self.data)},
            "http": {"addr": f"127.0.0.1:{self.port}"},
            "lease": {"type": "static", "hostname": "a", "candidate": True},
        }
        self.config.write_text(yaml.safe_dump(settings | sections))

    def mount_it(self, *prefix: str, command: tuple[str, ...] = ()) -> Done:
        """``litefs mount``, which is expected to end by itself."""
        line = [*prefix, *LITEFS, "mount", "-config", str(self.config), *command]
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert "Traceback" not in done.stderr
        assert find_mount(self.mount) is None
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def last_line(done: Done) -> str:
    assert done.status == 1
    return done.err.splitlines()[-1]


def test_a_mount_point_with_files(place: Place) -> None:
    place.mount.mkdir()
    (place.mount / "app.db").touch()
    assert last_line(place.mount_it()) == (
        f"ERROR: mount point {place.mount} is not empty: mounting would hide its files; move them away, or "
        "choose another fuse.dir. Databases go into the mount when it is there"
    )


def test_a_mount_point_that_is_a_file(place: Place) -> None:
    place.mount.touch()
    assert last_line(place.mount_it()) == (
        f"ERROR: cannot create mount point {place.mount}: File exists; fuse.dir has to name a directory, or "
        "a place where this user may make one"
    )


def test_a_missing_mount_point_is_made(make_node: Callable[..., Node]) -> None:
    node = make_node("a")
    node.mount.rmdir()
    node.start()
    assert node.stop() == 0


def test_a_port_that_is_in_use(place: Place) -> None:
    with socket.create_server(("127.0.0.1", place.port)):
        assert last_line(place.mount_it()) == (
            f"ERROR: cannot listen on 127.0.0.1:{place.port}: Address already in use; stop what listens "
            "there (ss -ltnp shows it), or choose another port in http.addr"
        )
    place.write(http={"addr": "nosuch.invalid:1"})
    assert last_line(place.mount_it()).endswith(
        "; http.addr has to be an address of this machine, or only :PORT"
    )


def test_no_fuse_device(place: Place) -> None:
    """A container that was not given the device: here /dev is empty, for this process only."""
    hide = 'mount -t tmpfs none /dev && exec "$@"'
    done = place.mount_it("unshare", "--mount", "sh", "-c", hide, "sh")
    assert last_line(done) == (
        "ERROR: /dev/fuse is missing or not accessible: load the module (modprobe fuse), or give the "
        "container --device /dev/fuse"
    )


def test_no_permission_to_mount(place: Place) -> None:
    line = last_line(place.mount_it(*NOT_ROOT))
    assert line.startswith(f"ERROR: cannot mount {place.mount}: ")
    assert line.endswith("--device /dev/fuse and --cap-add SYS_ADMIN, or fusermount3 of the package fuse3")


def test_no_permission_to_the_data_directory(place: Place) -> None:
    locked = place.root / "locked"
    locked.mkdir(mode=0o700)
    os.chown(locked, NOBODY, NOBODY)
    place.write(data={"dir": str(locked / "data")})
    assert last_line(place.mount_it(*NOT_OTHERS)) == (
        f"ERROR: cannot use the data directory {locked}/data: Permission denied; let this user write there, "
        "or choose another data.dir in litefs.yml"
    )
    place.write(data={"dir": str(place.config / "data")})
    assert "litefs.yml/data: Not a directory; let this user" in last_line(place.mount_it())


def test_a_data_directory_in_use(make_node: Callable[..., Node], place: Place) -> None:
    node = make_node("a").start()
    assert node.process is not None
    place.write(data={"dir": str(node.data)})
    assert last_line(place.mount_it()) == (
        f"ERROR: data directory {node.data} is in use by process {node.process.pid} or a child of it: stop "
        "that node, or give this one a data.dir of its own"
    )
    place.write(fuse={"dir": str(node.mount)})
    assert last_line(place.mount_it()) == (
        f"ERROR: mount point {node.mount} is in use: unmount what is there (umount {node.mount}), or choose "
        "another fuse.dir"
    )
    assert node.stop() == 0


def test_no_consul(place: Place) -> None:
    """The node waits for it, and says for what."""
    consul = free_port()
    lease = {"type": "consul", "hostname": "a", "consul": {"url": f"http://127.0.0.1:{consul}", "key": "k"}}
    place.write(lease=lease)
    log = place.root / "log"
    with log.open("wb") as file:
        line = [*LITEFS, "mount", "-config", place.config]
        process = spawn(line, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        said = f"store does not answer: consul 127.0.0.1:{consul} k: Connection refused; waiting for it"
        wait_until(lambda: said in log.read_text(), 20, "it says that Consul does not answer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        end(process)
    assert find_mount(place.mount) is None


def test_a_wrong_configuration(place: Place) -> None:
    place.write(fuse={"dri": "/x"})
    done = place.mount_it()
    assert done.status == 2
    assert "unknown key 'fuse.dri'; did you mean 'fuse.dir'?" in done.err
    place.write(lease={"type": "static", "candidate": False})
    done = place.mount_it()
    assert (done.status, "needs lease.advertise-url, the URL of the primary" in done.err) == (2, True)
    place.write(data={"dir": str(place.mount / "data")})
    done = place.mount_it()
    assert (done.status, "lies inside the fuse directory" in done.err) == (2, True)


def test_no_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [*LITEFS, "mount"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "ERROR: config file not found; looked for litefs.yml, $HOME/litefs.yml, /etc/litefs.yml. Name one by "
        "-config PATH, or try `litefs mount -dir DIR`, which needs none\n"
    )


def test_a_program_that_is_not_there(place: Place) -> None:
    assert last_line(place.mount_it(command=("--", "/nonexistent/app"))) == (
        "ERROR: cannot start '/nonexistent/app': No such file or directory; exec takes a program of $PATH or "
        "its whole path"
    )


def test_no_node_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for command in (
        ("status",),
        ("databases",),
        ("promote",),
        ("drop", "a.db"),
        ("export", "-name", "a.db", str(tmp_path / "a.db")),
    ):
        done = litefs(command[0], "-url", url, *command[1:])
        assert last_line(done).endswith("; is the node running there? -url or -config says where it is"), (
            command
        )
        assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_a_word_that_is_no_command() -> None:
    assert last_line(litefs("exprot")) == "ERROR: litefs exprot: unknown command; did you mean export?"
    assert last_line(litefs("xyzzy")) == "ERROR: litefs xyzzy: unknown command; litefs --help lists them"
