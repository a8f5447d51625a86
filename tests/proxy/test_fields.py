"""What happens to fields of requests and responses, and requests that are refused."""

from __future__ import annotations

import h11
import pytest

from litefs.proxy.fields import Client, inbound, outbound, refusal
from litefs.proxy.link import server_end

CLIENT = Client("192.0.2.1")


def parsed(text: str) -> h11.Request:
    conn = server_end()
    conn.receive_data(text.replace("\n", "\r\n").encode())
    event = conn.next_event()
    assert isinstance(event, h11.Request)
    return event


def passed(head: str, client: Client | None = CLIENT) -> dict[str, str]:
    """Fields of the request that the application gets; several of one name joined by " | "."""
    request = inbound(parsed(head + "\n\n"), client, b"target:1")
    found: dict[str, str] = {}
    for name, value in request.headers:
        key = name.decode()
        found[key] = f"{found[key]} | {value.decode()}" if key in found else value.decode()
    return found


def test_fields_of_one_connection_end_here() -> None:
    found = passed(
        "GET / HTTP/1.1\nHost: h\nConnection: close, X-Mine, Host\nX-Mine: 1\nKeep-Alive: 5\n"
        "Proxy-Connection: x\nProxy-Authorization: x\nTE: gzip\nUpgrade: websocket\nX-Kept: 2\nCookie: a=b"
    )
    added = {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "http", "via": "1.1 litefs"}
    assert found == {"host": "h", "x-kept": "2", "cookie": "a=b", **added}


def test_the_length_is_not_taken_off_by_the_client() -> None:
    found = passed(
        "POST / HTTP/1.1\nHost: h\nConnection: Content-Length, Cookie\nContent-Length: 3\nCookie: a"
    )
    assert (found["content-length"], found["cookie"]) == ("3", "a")


def test_who_the_client_is_follows_what_others_said() -> None:
    found = passed("GET / HTTP/1.1\nHost: h\nX-Forwarded-For: 1.1.1.1\nX-Forwarded-Proto: https\nVia: 1.1 a")
    assert found["x-forwarded-for"] == "1.1.1.1, 192.0.2.1"
    assert found["x-forwarded-proto"] == "https"
    assert found["via"] == "1.1 a | 1.1 litefs"
    assert "via" not in passed("GET / HTTP/1.1\nHost: h", None), "another node's proxy has said so"


def test_the_host() -> None:
    assert passed("GET http://a.example/x HTTP/1.1\nHost: other")["host"] == "a.example"
    assert passed("GET / HTTP/1.0")["host"] == "target:1"
    assert passed("GET http://a.example/x HTTP/1.0")["host"] == "a.example"
    assert inbound(parsed("GET http://a/x?y HTTP/1.1\nHost: b\n\n"), None, b"").target == b"/x?y"


def test_upgrades_are_passed_on_but_for_http() -> None:
    found = passed("GET / HTTP/1.1\nHost: h\nConnection: keep-alive, Upgrade\nUpgrade: websocket")
    assert (found["connection"], found["upgrade"]) == ("Upgrade", "websocket")
    found = passed(
        "GET / HTTP/1.1\nHost: h\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: x"
    )
    assert not {"connection", "upgrade", "http2-settings"} & set(found)


def test_trailers_are_asked_for() -> None:
    found = passed("GET / HTTP/1.1\nHost: h\nTE: trailers, deflate\nConnection: TE")
    assert (found["te"], found["connection"]) == ("trailers", "TE")


def test_spelling_and_order_are_kept() -> None:
    response = h11.Response(
        status_code=200, reason=b"Fine", headers=[("X-bB", "1"), ("ETag", "2"), ("Connection", "x-bB")]
    )
    made = outbound(response, [(b"Set-Cookie", b"c")])
    assert made.headers.raw_items() == [(b"ETag", b"2"), (b"Set-Cookie", b"c")]
    assert (made.status_code, made.reason) == (200, b"Fine")


def test_a_length_beside_chunks_is_not_passed_on() -> None:
    both = [("Content-Length", "9"), ("Transfer-Encoding", "chunked"), ("A", "b")]
    assert outbound(h11.Response(status_code=200, headers=both), []).headers.raw_items() == [(b"A", b"b")]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST / HTTP/1.1\nHost: h\nContent-Length: 3\nTransfer-Encoding: chunked", 400),
        ("POST / HTTP/1.0\nTransfer-Encoding: chunked", 400),
        ("CONNECT h:1 HTTP/1.1\nHost: h", 501),
        ("GET x HTTP/1.1\nHost: h", 400),
        ("GET * HTTP/1.1\nHost: h", 400),
        ("GET ftp://h/ HTTP/1.1\nHost: h", 400),
        ("GET http://user@h/ HTTP/1.1\nHost: h", 400),
        ("GET http:///x HTTP/1.1\nHost: h", 400),
        ("GET http://[h/ HTTP/1.1\nHost: h", 400),
        ("GET http://[h]/ HTTP/1.1\nHost: h", 400),
        ("OPTIONS * HTTP/1.1\nHost: h", None),
        ("GET http://h/ HTTP/1.1\nHost: h", None),
        ("POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked", None),
    ],
)
def test_requests_that_are_refused(head: str, status: int | None) -> None:
    found = refusal(parsed(head + "\n\n"))
    assert (found and found[0]) == status
