"""The main program of a process of the bench: ``FD``, a pipe from which it gets a function and arguments."""

from __future__ import annotations

import ctypes
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
"""prctl(2): by how many ns the kernel may delay the end of a sleep; 50 µs unless it is told otherwise."""


def main() -> None:
    """Call the function with the pipe and its arguments; end with the bench, whatever ends that."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_TIMERSLACK, 1000)
    # Ctrl-C goes to all processes of a terminal: what is done then, the bench says.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody is left to answer to.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    pipe = Connection(int(sys.argv[1]))
    with suppress(EOFError):
        function, arguments = pipe.recv()
        function(pipe, *arguments)


if __name__ == "__main__":
    main()
