"""What the proxy costs: requests a second beside the application's own rate, and the latency that it adds.

The load comes from wrk (Debian's package). The application is one that costs next to nothing, so the figures
are of the proxy. Latencies are taken at a fixed rate, in turn directly and through the proxy. While the proxy
is under full load the node's own loop is asked for /info: renewals of the lease and acknowledgements of
replicas wait no longer than that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    Series,
    arguments,
    awake,
    client,
    cluster,
    percentile,
    report,
    steal_recorded,
    workspace,
)
from tests.support.node import free_port
from tests.support.processes import end, spawn, wait_until

CONNECTIONS = 16

LATENCY = """
import json, socket, sys, time
direct, proxied, rate, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
request = sys.argv[5].encode().decode("unicode_escape").encode()
sockets = [socket.create_connection(("127.0.0.1", port)) for port in (direct, proxied)]
for one in sockets:
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
taken = [[], []]
begin = time.perf_counter()
# open loop: each request has its time, whatever became of the one before; each way gets `rate` a second
for number in range(int(2 * rate * seconds)):
    due = begin + number / (2 * rate)
    time.sleep(max(0.0, due - time.perf_counter()))
    one = sockets[number % 2]
    start = time.perf_counter()
    one.sendall(request)
    answer = b""
    while not answer.endswith(b"\\n"):
        answer += one.recv(65536)
    taken[number % 2].append(time.perf_counter() - start)
print(json.dumps(taken))
"""

REQUEST = "GET /a HTTP/1.1\\r\\nHost: localhost\\r\\nCookie: __txid=0000000000000001\\r\\n\\r\\n"
INFO = "GET /info HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"


def rate(port: int, seconds: float) -> float:
    """Requests a second as wrk counts them."""
    line = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", f"http://127.0.0.1:{port}/a"]
    out = subprocess.run(line, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    assert "Non-2xx" not in out, out
    found = re.search(r"Requests/sec:\s*([0-9.]+)", out)
    assert found is not None, out
    return float(found[1])


@contextlib.contextmanager
def application() -> Iterator[int]:
    """The application; its port."""
    port = free_port()
    process = spawn([sys.executable, "-m", "tests.support.clients.fast_target", str(port)])
    try:
        yield port
    finally:
        end(process)


def listens(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5), /proc/pid/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round (default %(default)s)")
    parser.add_argument("--rate", type=float, default=300.0, help="for latencies (default %(default)s)")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is missing: apt-get install wrk")
    direct, proxied = (
        Series("the application itself", "requests/s"),
        Series("through the proxy", "requests/s"),
    )
    cost = Series("CPU of the node per request", "µs")
    added = [Series(f"{name} added at {options.rate:g}/s", "ms") for name in ("p50", "p99")]
    info = Series("p99 of /info under full load", "ms")
    port = free_port()
    with workspace(options) as root, awake(options), application() as target:
        proxy = {"addr": f"127.0.0.1:{port}", "target": f"127.0.0.1:{target}", "db": "app.db"}
        with cluster(root, 0, proxy=proxy) as (node,):
            wait_until(lambda: listens(port), 20, "the proxy serves")
            assert node.process is not None
            pid = node.process.pid
            for _ in range(options.rounds):
                with steal_recorded(direct):
                    direct.values.append(rate(target, options.seconds))
                before = cpu_seconds(pid)
                with steal_recorded(proxied):
                    proxied.values.append(rate(port, options.seconds))
                used = cpu_seconds(pid) - before
                cost.values.append(1e6 * used / (proxied.values[-1] * options.seconds))
                taken = client(LATENCY, target, port, options.rate, options.seconds, REQUEST)
                ordered = [sorted(one) for one in taken]
                for one, share in zip(added, (0.5, 0.99), strict=True):
                    there, through = (percentile(times, share) for times in ordered)
                    one.values.append(1000 * (through - there))
                load = subprocess.Popen(
                    [
                        "wrk",
                        "-t1",
                        f"-c{CONNECTIONS}",
                        f"-d{options.seconds:g}s",
                        f"http://127.0.0.1:{port}/a",
                    ],
                    stdout=subprocess.DEVNULL,
                )
                asked = client(LATENCY, node.port, node.port, 25, options.seconds, INFO)
                load.wait(options.seconds + 30)
                info.values.append(1000 * percentile(sorted(asked[0] + asked[1]), 0.99))
    ratios = {"through the proxy / the application itself": proxied.median / direct.median}
    report(options, "small GET requests", [direct, proxied, cost, *added, info], ratios)


if __name__ == "__main__":
    main()
