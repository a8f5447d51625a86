"""The HTTP API over real sockets, with HTTP/2 and with HTTP/1.1."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

import h2.connection
import httpx
import pytest
import quart
import trio

from litefs.errors import ConfigError, LiteFSError
from litefs.server.serve import bind, parse_address
from litefs.stream.acks import HEADER_STREAM_ID, Ack, AckAnswer, encode
from litefs.stream.handshake import encode_positions, request_headers
from litefs.stream.memory import MemoryCatalog, MemorySource
from litefs.stream.protocols import Identity
from litefs.types import Point, Position
from tests.server.support import CLUSTER, OTHER_CLUSTER, FakeNode, client, load, serving

REPLICA = Identity(0xB2, CLUSTER, 1, "replica")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await test()

    trio.run(bounded)


def filled(name: str) -> MemorySource:
    source = MemorySource(name)
    source.commit({1: b"a" * 512})
    return source


@pytest.mark.parametrize("http2", [True, False])
def test_info_has_the_shape_of_go_litefs(http2: bool) -> None:
    async def main() -> None:
        node = FakeNode()
        async with serving(node) as url, client(http1=not http2, http2=http2) as http:
            response = await http.get(f"{url}/info")
            assert response.text == (
                "{\n"
                f'  "clusterID": "{CLUSTER}",\n'
                '  "isPrimary": true,\n'
                '  "candidate": true,\n'
                '  "path": "/litefs"\n'
                "}\n"
            )
            assert response.headers["Litefs-Id"] == "00000000000000A1"
            assert response.headers["Litefs-Cluster-Id"] == CLUSTER
            node.is_primary, node.primary_hostname = False, "other"
            info = load((await http.get(f"{url}/info")).text)
            assert (info["isPrimary"], info["primary"]) == (False, {"hostname": "other"})

    run(main)


def test_metrics() -> None:
    async def main() -> None:
        node = FakeNode(MemoryCatalog(filled("app.db")))
        node.measured.commits.update({"app.db": 7, "gone.db": 1})
        node.measured.snapshots_sent["app.db"] = 1
        node.measured.lease_renewals, node.measured.lease_failures = 5, 2
        for seconds in (500e-9, 2e-3, 100):
            node.measured.answer.add(int(seconds * 1e9))
        async with serving(node) as url, client() as http:
            response = await http.get(f"{url}/metrics")
            assert "gone.db" not in response.text
            lines = response.text.splitlines()
            for line in (
                "litefs_is_primary 1.0",
                "litefs_db_count 1.0",
                "litefs_subscriber_count 0.0",
                "litefs_sync_replicas 0.0",
                "litefs_lag_seconds 0.25",
                'litefs_db_txid{db="app.db"} 1.0',
                "litefs_lease_term 3.0",
                "litefs_role_changes_total 2.0",
                "litefs_lease_renewals_total 5.0",
                "litefs_lease_renewal_failures_total 2.0",
                "litefs_lost_directories 1.0",
                'litefs_db_ltx_count{db="app.db"} 1.0',
                'litefs_db_commit_count{db="app.db"} 7.0',
                'litefs_db_wal_write_count{db="app.db"} 0.0',
                'litefs_http_frame_send_count{db="app.db",type="ltx:snapshot"} 1.0',
                'litefs_commit_seconds_bucket{le="1.024e-06",phase="answer"} 1.0',
                'litefs_commit_seconds_bucket{le="0.00104858",phase="answer"} 1.0',
                'litefs_commit_seconds_bucket{le="0.00209715",phase="answer"} 2.0',
                'litefs_commit_seconds_count{phase="answer"} 3.0',
                'litefs_commit_seconds_sum{phase="answer"} 100.0020005',
                "litefs_fsync_seconds_count 0.0",
                'litefs_db_damaged{db="app.db"} 0.0',
            ):
                assert line in lines
            assert any(line.startswith("process_resident_memory_bytes") for line in lines)

    run(main)


def test_import_and_export_stream_both_ways() -> None:
    async def main() -> None:
        node = FakeNode()
        content = random.Random(1).randbytes(3 << 20)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(content), 100_000):
                yield content[at : at + 100_000]

        async with serving(node) as url, client() as http:
            response = await http.post(f"{url}/import?name=a.db", content=pieces())
            assert (response.status_code, response.text) == (200, "")
            assert node.imported == {"a.db": content}
            response = await http.get(f"{url}/export?name=a.db")
            assert response.content == content
            assert response.headers["Content-Length"] == str(len(content))
            assert [file.closed for file in node.exports] == [True]
            async with client() as leaving, leaving.stream("GET", f"{url}/export?name=a.db") as cut:
                await anext(cut.aiter_raw())
            while not all(file.closed for file in node.exports):
                await trio.sleep(0.01)

    run(main)


def test_no_limit_of_the_http_library_cuts_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB of a body, and 60 s for an answer, are what Quart allows unless it is told otherwise."""
    limits = {"MAX_CONTENT_LENGTH": 100_000, "RESPONSE_TIMEOUT": 0.1}
    monkeypatch.setattr(quart.Quart, "default_config", {**quart.Quart.default_config, **limits})

    async def main() -> None:
        async def slowly() -> AsyncIterator[bytes]:
            for _ in range(6):
                await trio.sleep(0.1)
                yield bytes(50_000)

        node = FakeNode()
        async with serving(node) as url, client() as http:
            assert (await http.post(f"{url}/import?name=a.db", content=slowly())).status_code == 200
            assert len(node.imported["a.db"]) == 300_000
            assert (await http.post(f"{url}/import?name=b.db", content=bytes(300_000))).status_code == 200
            async with http.stream("GET", f"{url}/events") as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                await trio.sleep(0.3)
                node.events.close()
                assert '"end"' in await anext(lines)

    run(main)


def test_a_full_disk_is_named_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    class FullDisk(FakeNode):
        async def import_database(
            self, name: str, chunks: AsyncIterable[bytes], *, check: bool, peer: bool
        ) -> Position:
            raise OSError(28, "No space left on device")

    async def main() -> None:
        async with serving(FullDisk()) as url, client() as http:
            response = await http.post(f"{url}/import?name=a.db", content=b"x")
            assert (response.status_code, response.text) == (507, "No space left on device\n")
            assert (await http.get(f"{url}/info")).status_code == 200
        assert "Traceback" not in caplog.text

    run(main)


def test_an_import_that_is_not_read_does_not_pile_up() -> None:
    async def main() -> None:
        node = FakeNode()
        node.import_gate = trio.Event()
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(400):
                sent += 65536
                yield bytes(65536)

        async with serving(node) as url, client(timeout=None) as http, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: http.post(f"{url}/import?name=a", content=endless()))
            await trio.sleep(0.5)
            assert 65536 <= sent < 8 << 20
            node.import_gate.set()
            while "a" not in node.imported:
                await trio.sleep(0.01)
            assert len(node.imported["a"]) == 400 * 65536

    run(main)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "404 page not found"),
        ("POST", "/info", 405, "method not allowed"),
        ("POST", "/import", 400, "name required"),
        ("POST", "/import?name=../../etc/passwd", 400, "invalid database name"),
        ("GET", "/export?name=absent", 404, "database not found"),
        ("GET", "/export?name=a-wal", 400, "invalid database name"),
    ],
)
def test_errors_are_one_line_of_text(method: str, path: str, status: int, message: str) -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client() as http:
            response = await http.request(method, url + path)
            assert response.status_code == status
            assert message in response.text
            assert response.text.endswith("\n")
            assert response.headers["Content-Type"].startswith("text/plain")

    run(main)


def test_a_replica_refuses_imports_and_streams() -> None:
    async def main() -> None:
        node = FakeNode()
        node.is_primary = False
        async with serving(node) as url, client() as http:
            assert (await http.post(f"{url}/import?name=a", content=b"x")).status_code == 503
            response = await http.post(
                f"{url}/stream", headers=request_headers(REPLICA), content=encode_positions({})
            )
            assert response.status_code == 503
            assert "not the primary" in response.text

    run(main)


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        ({"Litefs-Id": "00000000000000B2"}, b"\0\0\0\0", 400, "not a node of this LiteFS"),
        (request_headers(REPLICA) | {"LiteFS-Stream": "2"}, b"\0\0\0\0", 400, "stream version '2'"),
        (request_headers(Identity(0xA1, CLUSTER)), b"\0\0\0\0", 400, "cannot connect to self"),
        (request_headers(Identity(0xB2, OTHER_CLUSTER)), b"\0\0\0\0", 409, OTHER_CLUSTER),
        (request_headers(Identity(0xB2, CLUSTER, 5)), b"\0\0\0\0", 503, "term 5"),
        (request_headers(REPLICA), b"GET / HTTP/1.1", 400, "position map"),
        (request_headers(REPLICA), b"\0\0\0\1\0\0\0\2..", 400, "position map: offset 4"),
        (request_headers(REPLICA) | {"Litefs-Id": "xyz"}, b"\0\0\0\0", 400, "not a node id"),
        (request_headers(REPLICA) | {"Litefs-Term": "-1"}, b"\0\0\0\0", 400, "Litefs-Term"),
    ],
)
def test_bad_stream_requests_are_told_why(
    headers: dict[str, str], body: bytes, status: int, message: str
) -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client() as http:
            response = await http.post(f"{url}/stream", headers=headers, content=body)
            assert (response.status_code, message in response.text) == (status, True), response.text

    run(main)


def test_names_that_escape_are_refused_in_a_position_map() -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client() as http:
            body = encode_positions({"../../x": Point(1, 1 << 63)})
            response = await http.post(f"{url}/stream", headers=request_headers(REPLICA), content=body)
            assert response.status_code == 400
            assert "invalid database name" in response.text

    run(main)


def test_http1_cannot_stream() -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client(http1=True, http2=False) as http:
            response = await http.post(f"{url}/stream", headers=request_headers(REPLICA), content=b"")
            assert response.status_code == 426

    run(main)


async def take_without_window_updates(stream: trio.SocketStream, port: int) -> None:
    """Ask for a stream, read the socket for ever, and never grant more than HTTP/2's first 64 KiB."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    headers = {":method": "POST", ":path": "/stream", ":scheme": "http", ":authority": f"127.0.0.1:{port}"}
    headers |= {name.lower(): value for name, value in request_headers(REPLICA).items()}
    connection.send_headers(1, list(headers.items()))
    connection.send_data(1, encode_positions({}), end_stream=True)
    await stream.send_all(connection.data_to_send())
    while data := await stream.receive_some(65536):
        connection.receive_data(data)
        await stream.send_all(connection.data_to_send())


@pytest.mark.parametrize("reads", [True, False])
def test_a_replica_that_takes_nothing_costs_no_memory_and_does_not_delay_the_stop(reads: bool) -> None:
    async def main() -> None:
        source = MemorySource("big", 65536)
        rng = random.Random(2)
        for first in range(1, 600, 50):
            source.commit({pgno: rng.randbytes(65536) for pgno in range(first, first + 50)})
        node = FakeNode(MemoryCatalog(source))
        async with serving(node) as url, client() as http, trio.open_nursery() as nursery:
            if reads:
                port = int(url.rpartition(":")[2])
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                nursery.start_soon(take_without_window_updates, stream, port)
            else:
                request = http.build_request(
                    "POST", f"{url}/stream", headers=request_headers(REPLICA), content=encode_positions({})
                )
                assert (await http.send(request, stream=True)).status_code == 200
            await trio.sleep(0.6)
            async with client() as other:
                metrics = (await other.get(f"{url}/metrics")).text
            sent = next(
                float(line.split()[1])
                for line in metrics.splitlines()
                if line.startswith("litefs_stream_sent_bytes_total")
            )
            assert "litefs_subscriber_count 1.0" in metrics
            # Our buffer, and beyond it what the sockets hold or what httpx's window of 16 MiB lets through.
            assert sent < (1 << 20 if reads else 18 << 20)
            nursery.cancel_scope.cancel()

    run(main)


def test_garbage_on_the_port_is_answered_or_closed() -> None:
    async def main() -> None:
        async with serving(FakeNode()) as url, client() as http:
            port = int(url.rpartition(":")[2])
            for garbage in (
                b"\x16\x03\x01\x02\x00\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x01\0\0\0\0\0\0x",  # DATA on stream 0
            ):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(garbage)
                with trio.fail_after(5):
                    while await stream.receive_some(4096):
                        pass
                await stream.aclose()
            assert (await http.get(f"{url}/info")).status_code == 200

    run(main)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LiteFSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["", "localhost", ":http", "1.2.3.4:70000"])
def test_bad_addresses_are_configuration_errors(address: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.addr"):
        parse_address(address)


def test_an_empty_host_listens_on_ipv4_too() -> None:
    for sock in bind(":0"):
        with sock, socket.create_connection(("127.0.0.1", sock.getsockname()[1]), timeout=5):
            pass


@pytest.mark.parametrize("http2", [True, False])
def test_an_early_refusal_of_a_long_body_leaves_the_server_up(http2: bool) -> None:
    async def main() -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(200):
                yield bytes(100_000)

        node = FakeNode()
        node.is_primary = False
        async with serving(node) as url:
            for _ in range(3):
                async with client(http1=not http2, http2=http2) as http:
                    try:
                        response = await http.post(f"{url}/import?name=a.db", content=pieces())
                    except httpx.TransportError:
                        continue  # the answer came while the body was being sent
                    assert response.status_code == 503
            async with client() as http:
                assert (await http.get(f"{url}/info")).status_code == 200

    run(main)


def test_acknowledgements_belong_to_a_stream() -> None:
    async def main() -> None:
        node = FakeNode()
        async with serving(node) as url, client() as http:

            async def ack(body: bytes, **headers: str) -> tuple[int, bytes]:
                sent = request_headers(REPLICA) | {HEADER_STREAM_ID: "A"} | headers
                response = await http.post(f"{url}/stream/ack", headers=sent, content=body)
                return response.status_code, response.content

            empty = encode(Ack(True, ()))
            assert await ack(empty) == (409, b"acknowledgement of a stream that is not open\n")
            assert (await ack(b"\xc1"))[0] == 400
            assert (await ack(empty, **{HEADER_STREAM_ID: "x"}))[0] == 400
            assert (await ack(empty, **{"Litefs-Cluster-Id": OTHER_CLUSTER}))[0] == 409
            headers = request_headers(REPLICA) | {HEADER_STREAM_ID: "A"}
            async with http.stream(
                "POST", f"{url}/stream", headers=headers, content=encode_positions({})
            ) as response:
                await anext(response.aiter_raw())
                assert await ack(empty) == (200, encode(AckAnswer()))
                node.is_primary = False
                assert (await ack(empty))[0] == 503

    run(main)


@pytest.mark.parametrize("http2", [True, False])
def test_an_answer_amid_a_long_body_ends_the_request(http2: bool) -> None:
    """The client writes and reads in turn: it hears of the answer when the connection or stream ends."""

    class Late(FakeNode):
        async def import_database(
            self, name: str, chunks: AsyncIterable[bytes], *, check: bool, peer: bool
        ) -> Position:
            async for _ in chunks:
                break
            await trio.sleep(0.3)  # meanwhile all buffers on the way are full
            raise LiteFSError("the primary is gone")

    async def main() -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(200):
                yield bytes(100_000)

        async with serving(Late()) as url, client(http1=not http2, http2=http2) as http:
            with trio.fail_after(5):
                response = await http.post(f"{url}/import?name=a.db", content=pieces())
            assert (response.status_code, response.text) == (500, "the primary is gone\n")

    run(main)
