"""What closing a database does to the locks that its process holds (I25), on a real mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.fs.harness import python, serving
from tests.support.processes import pause

HOLDER = """
import fcntl, os, sys, threading
path = sys.argv[1]
created = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
opened = [os.open(path, flags | os.O_CLOEXEC) for flags in (os.O_RDWR, os.O_RDONLY)]
kept = os.open(path, os.O_RDWR | os.O_CLOEXEC)
print("open", flush=True)
input()
closer = threading.Thread(target=lambda: [os.close(fd) for fd in (created, *opened)])
closer.start()
closer.join(1)
fcntl.lockf(kept, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))
print("locked", flush=True)
input()
closer.join()
print("closed", flush=True)
input()
"""
TAKE = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))
    print("taken")
except BlockingIOError:
    print("held")
"""
RESERVED_BYTE = 0x40000001


def test_a_lock_taken_while_another_thread_closes_the_database_is_kept(tmp_path: Path) -> None:
    """A fs process that stands still makes the close of a file that has to be flushed last until it goes on."""
    with serving(tmp_path) as fs:
        arguments = [sys.executable, "-c", HOLDER, str(fs.mount / "a.db"), str(RESERVED_BYTE)]
        holder = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "open\n"
            pause(fs.process.pid)
            print(file=holder.stdin, flush=True)
            assert holder.stdout.readline() == "locked\n"
            fs.process.send_signal(signal.SIGCONT)
            print(file=holder.stdin, flush=True)
            assert holder.stdout.readline() == "closed\n"
            assert python(TAKE, fs.mount / "a.db", RESERVED_BYTE) == "held\n"
        finally:
            os.kill(fs.process.pid, signal.SIGCONT)
            holder.kill()
            holder.communicate()
        assert python(TAKE, fs.mount / "a.db", RESERVED_BYTE) == "taken\n"
