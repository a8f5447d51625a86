# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""What pyfuse3's request loop waits with: poll first, spin while requests keep coming, park in trio only then.

pyfuse3 looks up its async primitives in a module attribute (``pyfuse3.trio``), so that its own asyncio support can
replace them. :class:`FuseLoop` supplies the two that are on the path of every request, ``Lock`` and
``wait_readable``; both complete without entering trio's scheduler while requests are at hand.

No I/O happens here but poll(2), and one fcntl(2) that makes the FUSE device non-blocking.
"""

from collections import deque

import trio
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t
from posix.fcntl cimport F_GETFL, F_SETFL, O_NONBLOCK, fcntl
from posix.unistd cimport write
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long nfds, int timeout)
    short POLLIN

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    MAX_FDS = 8            # the FUSE device, trio's wake-up and a few links
    MAX_SCORE = 8          # consecutive quick arrivals until the spin has its full length
    FUSE = 1               # bits of what a poll found
    OTHER = 2

cdef int64_t CHECKPOINT_NS = 1_000_000    # other trio tasks never wait longer than this for a busy mount
cdef int64_t FIRST_SPIN_NS = 25_000       # before tasks that a handler made runnable get their turn
cdef int64_t MICROSECOND = 1_000


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <int64_t>ts.tv_sec * 1_000_000_000 + ts.tv_nsec


cdef int look(pollfd *fds, int count) noexcept nogil:
    """What is readable now: FUSE | OTHER. An error condition counts: the read that follows reports it."""
    cdef int found = 0, i
    if poll(fds, count, 0) <= 0:
        return 0
    if fds[0].revents:
        found = FUSE
    for i in range(1, count):
        if fds[i].revents:
            found |= OTHER
    return found


cdef int spin(pollfd *fds, int count, int64_t until) noexcept nogil:
    """Look until something is readable or CLOCK_MONOTONIC reaches ``until``; offers the CPU to others meanwhile."""
    cdef int found
    while True:
        found = look(fds, count)
        if found or now_ns() >= until:
            return found
        sched_yield()


cdef class _Done:
    """An awaitable that is already complete."""

    def __await__(self):
        return iter(())


cdef _Done DONE = _Done()


cdef class ReadLock:
    """The lock under which one worker at a time waits for a request.

    Unlike ``trio.Lock`` it is not handed over: who comes first takes it. A worker whose handler did not block thus takes
    it again at once; if the handler did block, the waiter woken by the release runs in its place.
    """

    cdef bint held
    cdef bint woken        # a waiter has been rescheduled and has not run yet
    cdef object waiters

    def __init__(self):
        self.held = False
        self.woken = False
        self.waiters = deque()

    def __aenter__(self):
        if self.held:
            return self._acquire()
        self.held = True
        return DONE

    def __aexit__(self, exc_type, exc, traceback):
        self.held = False
        if self.waiters and not self.woken:
            self.woken = True
            trio.lowlevel.reschedule(self.waiters.popleft())
        return DONE

    async def _acquire(self):
        task = trio.lowlevel.current_task()

        def abort(_):
            self.waiters.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        while self.held:
            self.waiters.appendleft(task)
            await trio.lowlevel.wait_task_rescheduled(abort)
            self.woken = False
        self.held = True


cdef class FuseLoop:
    """Waits for requests of one mount; belongs to one trio run.

    ``wakeup_fd`` becomes readable when trio itself has something to do (its epoll descriptor), or is -1.
    ``max_spin_us`` bounds how long a quiet device is polled before the task parks; 0 turns spinning off.
    """

    cdef pollfd fds[MAX_FDS]
    cdef int count
    cdef bint prepared
    cdef bint closed
    cdef bint yield_due
    cdef int score
    cdef int signal_fd
    cdef int64_t max_spin
    cdef int64_t checkpoint_at
    cdef readonly unsigned long parked
    """How often a wait ended in trio's scheduler, for tests and for tuning."""

    def __init__(self, int wakeup_fd=-1, int max_spin_us=200):
        self.fds[0].fd = -1
        self.fds[0].events = POLLIN
        self.count = 1
        self.signal_fd = -1
        self.max_spin = max_spin_us * MICROSECOND
        if wakeup_fd >= 0:
            self.watch(wakeup_fd)

    def watch(self, int fd):
        """While spinning, give way to trio as soon as ``fd`` is readable. Raises ValueError beyond 7 descriptors."""
        if self.count == MAX_FDS:
            raise ValueError(f"at most {MAX_FDS - 1} descriptors can be watched")
        self.fds[self.count].fd = fd
        self.fds[self.count].events = POLLIN
        self.count += 1

    def unwatch(self, int fd):
        """Forget ``fd``; call it before closing the descriptor. Raises ValueError if it is not watched."""
        cdef int i
        for i in range(1, self.count):
            if self.fds[i].fd == fd:
                self.count -= 1
                self.fds[i] = self.fds[self.count]
                return
        raise ValueError(f"descriptor {fd} is not watched")

    def yield_soon(self):
        """Let other tasks run before the next request; for handlers that made one runnable."""
        self.yield_due = True

    def signal_later(self, int fd):
        """Add 1 to the eventfd ``fd`` once the present request has been answered.

        Waking another process takes up to 100 us, which the client should not wait for. One descriptor per object.
        """
        self.signal_fd = fd

    @property
    def spin_us(self):
        """Present length of the spin in microseconds: 0 on an idle mount."""
        return self._spin_ns() // MICROSECOND

    cdef int64_t _spin_ns(self) noexcept:
        return self.max_spin * self.score // MAX_SCORE

    cdef void _arrived(self, int64_t waited) noexcept:
        """Learn from one wait: requests that come quickly lengthen the spin by steps, a pause halves it."""
        if waited <= self.max_spin:
            if self.score < MAX_SCORE:
                self.score += 1
        else:
            self.score >>= 1

    cdef void _prepare(self, int fd) except *:
        # A request whose client was killed leaves the queue again between poll and read; a blocking read would
        # then stop the process, GIL and all, until the next request.
        cdef int flags = fcntl(fd, F_GETFL)
        if flags < 0 or fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0:
            raise OSError(errno, "cannot make the FUSE device non-blocking")
        self.fds[0].fd = fd
        self.prepared = True

    def wait_readable(self, int fd):
        """An awaitable that completes when ``fd``, the FUSE device, is readable.

        Raises trio.ClosedResourceError after notify_closing. Always the same descriptor for one object.
        """
        cdef int found
        cdef int64_t begin, until
        cdef uint64_t one = 1
        if self.signal_fd >= 0:
            # a full counter (EAGAIN) means that a wake-up is due anyway
            write(self.signal_fd, &one, sizeof(one))
            self.signal_fd = -1
        if not self.prepared:
            self._prepare(fd)
        if self.closed:
            raise trio.ClosedResourceError("the mount is being closed")
        begin = now_ns()
        if self.yield_due or begin >= self.checkpoint_at:
            return self._wait(begin)
        found = look(self.fds, self.count)
        if found == 0 and self.score:
            until = begin + min(self._spin_ns(), FIRST_SPIN_NS)
            with nogil:
                found = spin(self.fds, self.count, until)
        if found == FUSE:
            self._arrived(now_ns() - begin)
            return DONE
        return self._wait(begin)

    async def _wait(self, int64_t begin):
        cdef int found
        cdef int64_t until
        while True:
            self.yield_due = False
            # Twice: trio shuffles a batch of runnable tasks, so after one turn the others may still be to come.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            if self.closed:
                raise trio.ClosedResourceError("the mount is being closed")
            self.checkpoint_at = now_ns() + CHECKPOINT_NS
            until = min(begin + self._spin_ns(), self.checkpoint_at)
            with nogil:
                found = spin(self.fds, self.count, until)
            if found & FUSE:
                break
            if now_ns() >= begin + self._spin_ns():
                self.parked += 1
                await trio.lowlevel.wait_readable(self.fds[0].fd)
                break
        self._arrived(now_ns() - begin)

    def notify_closing(self, int fd):
        """End every present and future wait with trio.ClosedResourceError."""
        self.closed = True
        trio.lowlevel.notify_closing(fd)
