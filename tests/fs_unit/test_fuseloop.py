"""The wait primitives under pyfuse3's request loop, and the session around them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from litefs._core.fuseloop import FuseLoop, ReadLock
from litefs.errors import MountError
from litefs.fs import session as session_module
from litefs.fs.session import (
    abort,
    check_mountpoint,
    find_mount,
    is_mounted,
    is_stale,
    lazy_unmount,
    parse_mountinfo,
)
from tests.support.processes import pause


@contextlib.contextmanager
def event_descriptor() -> Iterator[int]:
    fd = os.eventfd(0)
    try:
        yield fd
    finally:
        os.close(fd)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(10):
            await test()

    trio.run(bounded)


def test_busy_descriptor_is_not_handed_to_the_scheduler() -> None:
    async def test() -> None:
        with event_descriptor() as fd:
            os.eventfd_write(fd, 1)
            loop = FuseLoop()
            for _ in range(1000):
                await loop.wait_readable(fd)
            assert loop.parked == 0
            assert os.get_blocking(fd) is False
            assert loop.spin_us == 200

    run(test)


def test_other_tasks_run_while_the_mount_is_busy() -> None:
    async def test() -> None:
        turns: list[float] = []

        async def other() -> None:
            while True:
                turns.append(time.monotonic())
                await trio.lowlevel.checkpoint()

        with event_descriptor() as fd:
            os.eventfd_write(fd, 1)
            loop = FuseLoop()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    await loop.wait_readable(fd)
                nursery.cancel_scope.cancel()
        # One turn a millisecond; another tenant of the machine may take some away.
        assert len(turns) > 30

    run(test)


def test_yield_soon_gives_a_turn_before_the_next_request() -> None:
    async def test() -> None:
        with event_descriptor() as fd:
            os.eventfd_write(fd, 1)
            loop = FuseLoop()
            await loop.wait_readable(fd)
            event = trio.Event()
            woken: list[bool] = []

            async def waiter() -> None:
                await event.wait()
                woken.append(True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter)
                await trio.testing.wait_all_tasks_blocked()
                event.set()
                loop.yield_soon()
                await loop.wait_readable(fd)
                assert woken

    run(test)


def test_quiet_descriptor_parks_and_the_spin_fades() -> None:
    async def test() -> None:
        with event_descriptor() as fd:
            loop = FuseLoop()
            os.eventfd_write(fd, 1)
            for _ in range(20):
                await loop.wait_readable(fd)
            for _ in range(6):
                os.eventfd_read(fd)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(loop.wait_readable, fd)
                    await trio.sleep(0.005)
                    os.eventfd_write(fd, 1)
            assert loop.parked == 6
            assert loop.spin_us == 0

    run(test)


def test_spin_gives_way_to_a_watched_descriptor() -> None:
    async def test() -> None:
        with event_descriptor() as fd, event_descriptor() as link:
            loop = FuseLoop(max_spin_us=400_000)
            loop.watch(link)
            os.eventfd_write(fd, 1)
            for _ in range(20):
                await loop.wait_readable(fd)
            os.eventfd_read(fd)
            seen: list[float] = []

            async def answer() -> None:
                await trio.lowlevel.wait_readable(link)
                seen.append(time.monotonic())
                os.eventfd_read(link)
                os.eventfd_write(fd, 1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                await trio.testing.wait_all_tasks_blocked()
                begin = time.monotonic()
                nursery.start_soon(trio.to_thread.run_sync, _write_later, link)
                await loop.wait_readable(fd)
            assert seen[0] - begin < 0.2
            assert loop.parked == 0

    run(test)


def _write_later(fd: int) -> None:
    time.sleep(0.02)
    os.eventfd_write(fd, 1)


def test_watched_descriptor_that_stays_readable_does_not_spin_for_ever() -> None:
    async def test() -> None:
        with event_descriptor() as fd, event_descriptor() as link:
            loop = FuseLoop()
            loop.watch(link)
            os.eventfd_write(link, 1)
            with trio.move_on_after(0.05) as scope:
                await loop.wait_readable(fd)
            assert scope.cancelled_caught
            assert loop.parked == 1

    run(test)


def test_watch_is_bounded_and_unwatch_forgets() -> None:
    loop = FuseLoop()
    for fd in range(100, 107):
        loop.watch(fd)
    with pytest.raises(ValueError, match="7 descriptors"):
        loop.watch(107)
    loop.unwatch(100)
    loop.watch(107)
    with pytest.raises(ValueError, match="not watched"):
        loop.unwatch(100)


def test_cancellation_is_honoured_parked_and_busy() -> None:
    async def test() -> None:
        with event_descriptor() as fd:
            loop = FuseLoop()
            with trio.move_on_after(0.02) as scope:
                await loop.wait_readable(fd)
            assert scope.cancelled_caught
            os.eventfd_write(fd, 1)
            with trio.move_on_after(0.02) as scope:
                while True:
                    await loop.wait_readable(fd)
            assert scope.cancelled_caught

    run(test)


def test_closing_ends_present_and_future_waits() -> None:
    async def test() -> None:
        with event_descriptor() as fd:
            loop = FuseLoop()
            async with trio.open_nursery() as nursery:

                async def waiter() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await loop.wait_readable(fd)

                nursery.start_soon(waiter)
                await trio.testing.wait_all_tasks_blocked()
                loop.notify_closing(fd)
            with pytest.raises(trio.ClosedResourceError):
                await loop.wait_readable(fd)

    run(test)


def test_lock_is_taken_again_without_a_handover() -> None:
    async def test() -> None:
        lock = ReadLock()
        order: list[str] = []

        async def worker() -> None:
            async with lock:
                order.append("worker")

        async with trio.open_nursery() as nursery:
            async with lock:
                nursery.start_soon(worker)
                await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                async with lock:
                    order.append("holder")
        assert order == ["holder"] * 3 + ["worker"]

    run(test)


def test_lock_passes_on_when_the_holder_blocks() -> None:
    async def test() -> None:
        lock = ReadLock()
        active = 0
        turns = 0

        async def worker() -> None:
            nonlocal active, turns
            for _ in range(50):
                async with lock:
                    active += 1
                    assert active == 1
                    await trio.lowlevel.checkpoint()
                    active -= 1
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(worker)
        assert turns == 200

    run(test)


def test_cancelled_waiter_leaves_the_lock_usable() -> None:
    async def test() -> None:
        lock = ReadLock()
        async with lock:
            with trio.move_on_after(0.01) as scope:
                async with lock:
                    pytest.fail("the lock was held")
            assert scope.cancelled_caught
        async with lock:
            pass

    run(test)


def test_worker_starts_again_after_an_empty_read() -> None:
    async def test() -> None:
        calls: list[object] = []

        async def worker(nursery: object, limit: int) -> None:
            calls.append(nursery)
            await trio.lowlevel.checkpoint()
            if len(calls) < limit:
                raise OSError(errno.EAGAIN, "nothing to read")

        async with session_module._open_nursery() as nursery:
            nursery.start_soon(worker, nursery, 3, name="worker")
        assert calls == [nursery] * 3

    run(test)


def test_trio_wakeup_descriptor_is_found() -> None:
    """Our use of trio's internals holds for the installed version: a thread's wake-up makes it readable."""

    async def test() -> None:
        fd = session_module._trio_wakeup_fd()
        with event_descriptor() as idle:
            loop = FuseLoop(fd, max_spin_us=400_000)
            os.eventfd_write(idle, 1)
            for _ in range(20):
                await loop.wait_readable(idle)
            os.eventfd_read(idle)
            begin = time.monotonic()
            async with trio.open_nursery() as nursery:

                async def from_thread() -> None:
                    await trio.to_thread.run_sync(time.sleep, 0.02)
                    os.eventfd_write(idle, 1)

                nursery.start_soon(from_thread)
                await loop.wait_readable(idle)
            assert time.monotonic() - begin < 0.3
            assert loop.parked == 0

    run(test)


def test_mountinfo_escapes_and_order() -> None:
    text = (
        "36 35 0:57 / /mnt/with\\040space rw,nosuid shared:1 - fuse.litefs litefs rw\n"
        "37 35 254:0 / / rw - ext4 /dev/vda rw\n"
    )
    first, second = parse_mountinfo(text)
    assert (first.minor, first.path, first.fstype) == (57, "/mnt/with space", "fuse.litefs")
    assert (second.major, second.path, second.fstype) == (254, "/", "ext4")


@contextlib.contextmanager
def hello(mountpoint: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.fs_unit.hello_server", str(mountpoint)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "serving\n"
        yield server
    finally:
        server.kill()
        server.wait(5)
        mount = find_mount(mountpoint)
        if mount is not None:
            abort(mount.minor)
            with contextlib.suppress(MountError):  # the abort may have removed it
                lazy_unmount(mountpoint)
        assert server.stdout is not None
        server.stdout.close()


def read(path: Path, offset: int = 0) -> subprocess.Popen[bytes]:
    script = "import os, sys; fd = os.open(sys.argv[1], 0); print(os.pread(fd, 5, int(sys.argv[2])).decode())"
    return subprocess.Popen(
        [sys.executable, "-S", "-c", script, str(path), str(offset)], stdout=subprocess.PIPE
    )


def test_session_serves_idles_and_unmounts(tmp_path: Path) -> None:
    with hello(tmp_path) as server:
        slow = read(tmp_path / "hello", 100)
        quick = [read(tmp_path / "hello") for _ in range(3)]
        for reader in [*quick, slow]:
            assert reader.communicate(timeout=10)[0] == b"hello\n"
        assert not is_stale(tmp_path)
        process = psutil.Process(server.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(1)
        assert sum(process.cpu_times()[:2]) - before <= 0.02
        with pytest.raises(MountError, match="in use"):
            check_mountpoint(tmp_path)
        server.terminate()
        assert server.wait(5) == 0
        assert not is_mounted(tmp_path)


def test_killed_server_leaves_a_stale_mount_that_can_be_detached(tmp_path: Path) -> None:
    with hello(tmp_path) as server:
        server.send_signal(signal.SIGKILL)
        server.wait(5)
        assert is_mounted(tmp_path)
        assert is_stale(tmp_path)
        lazy_unmount(tmp_path)
        assert not is_mounted(tmp_path)
        assert not is_stale(tmp_path)
        check_mountpoint(tmp_path)


def test_stopped_server_is_not_stale_and_abort_frees_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "PROBE_SECONDS", 0.3)
    with hello(tmp_path) as server:
        pause(server.pid)
        assert not is_stale(tmp_path)
        client = read(tmp_path / "hello")
        time.sleep(0.1)
        assert client.poll() is None
        mount = find_mount(tmp_path)
        assert mount is not None
        abort(mount.minor)
        assert client.wait(5) != 0
        assert client.stdout is not None
        client.stdout.close()
        assert is_stale(tmp_path) or not is_mounted(tmp_path)


def test_killed_client_does_not_stop_the_server(tmp_path: Path) -> None:
    """Requests of killed clients vanish from the queue; the server must not wait inside a read for them."""
    with hello(tmp_path):
        for _ in range(5):
            clients = [read(tmp_path / "hello", 100) for _ in range(4)]
            time.sleep(0.06)
            for client in clients:
                client.kill()
                client.communicate(timeout=5)
        assert read(tmp_path / "hello").communicate(timeout=5)[0] == b"hello\n"


def test_unusable_mountpoints_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(MountError, match="not a directory"):
        check_mountpoint(file)
    with pytest.raises(MountError, match="not empty"):
        check_mountpoint(tmp_path)
    with pytest.raises(MountError, match="No such file"):
        check_mountpoint(tmp_path / "missing")
    with pytest.raises(MountError, match="cannot unmount"):
        lazy_unmount(tmp_path)
