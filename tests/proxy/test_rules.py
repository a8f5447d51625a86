"""Which way requests go, and the cookie."""

from __future__ import annotations

import pytest

from litefs.config_proxy import ProxyConfig
from litefs.proxy.rules import Kind, Rules, cookie_positions, path_of, set_cookie, split_absolute

RULES = Rules(ProxyConfig(passthrough=("/static/*", "*.png"), always_forward=("/cron", "/admin/*")))


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        (b"GET", b"/", Kind.READ),
        (b"HEAD", b"/a?b=c", Kind.READ),
        (b"get", b"/", Kind.WRITE),
        (b"POST", b"/", Kind.WRITE),
        (b"OPTIONS", b"*", Kind.WRITE),
        (b"DELETE", b"/a", Kind.WRITE),
        (b"GET", b"/cron", Kind.WRITE),
        (b"GET", b"/cron?now=1", Kind.WRITE),
        (b"GET", b"/cron/", Kind.READ),
        (b"GET", b"/x/cron", Kind.READ),
        (b"GET", b"/admin/a/b", Kind.WRITE),
        (b"HEAD", b"/%61dmin/", Kind.WRITE),
        (b"GET", b"http://host/admin/x", Kind.WRITE),
        (b"GET", b"/admin/%0a", Kind.WRITE),
        (b"POST", b"/static/x", Kind.PASS),
        (b"POST", b"/up/a.png?v=1", Kind.PASS),
        (b"POST", b"/up/apng", Kind.WRITE),
        (b"GET", b"/?f=/a.png", Kind.READ),
        (b"GET", b"/litefs/health", Kind.HEALTH),
        (b"GET", b"/litefs/health?x", Kind.HEALTH),
        (b"POST", b"/litefs/health", Kind.WRITE),
    ],
)
def test_the_way_of_a_request(method: bytes, target: bytes, kind: Kind) -> None:
    assert RULES.kind(method, target) is kind


def test_passthrough_comes_before_all() -> None:
    rules = Rules(ProxyConfig(passthrough=("*",), always_forward=("*",)))
    assert rules.kind(b"GET", b"/litefs/health") is Kind.PASS


def test_without_globs() -> None:
    rules = Rules(ProxyConfig())
    assert (rules.kind(b"GET", b""), rules.kind(b"POST", b"")) == (Kind.READ, Kind.WRITE)


def test_targets() -> None:
    assert path_of(b"/a%2Fb?c") == "/a/b"
    assert split_absolute(b"HTTP://h:1/a?b") == (b"h:1", b"/a?b")
    assert split_absolute(b"https://h") == (b"h", b"/")
    assert split_absolute(b"/http://h") == (b"", b"/http://h")


ONE, TWO = "00000000000000ab", "0000000000000002"


@pytest.mark.parametrize(
    ("cookies", "databases", "expected"),
    [
        ([f"__txid={ONE}"], ["a.db"], {"a.db": 0xAB}),
        ([f"x=y; __txid={ONE};z=1"], ["a.db", "b.db"], {"a.db": 0xAB}),
        (["x=y", f'__txid="{ONE}"'], ["a.db"], {"a.db": 0xAB}),
        ([f"__txid=b.db:{ONE}"], ["a.db", "b.db"], {"b.db": 0xAB}),
        ([f"__txid=a.db:{TWO}&dir%2Fc%3A1:{ONE}"], ["a.db", "dir/c:1"], {"a.db": 2, "dir/c:1": 0xAB}),
        ([f"__txid=other.db:{ONE}"], ["a.db"], {}),
        ([f"__txid={ONE[1:]}"], ["a.db"], {}),
        (["__txid=-000000000000001"], ["a.db"], {}),
        (["__txid="], ["a.db"], {}),
        ([f"x__txid={ONE}"], ["a.db"], {}),
        ([], ["a.db"], {}),
    ],
)
def test_cookies_that_are_honoured(
    cookies: list[str], databases: list[str], expected: dict[str, int]
) -> None:
    assert cookie_positions([cookie.encode() for cookie in cookies], databases) == expected


def test_cookies_that_are_set() -> None:
    assert set_cookie({"a.db": 0xAB}, ["a.db"]) == b"__txid=00000000000000ab; Path=/; Max-Age=300; HttpOnly"
    assert set_cookie({"a.db": 0}, ["a.db"]) is None
    databases = ["a.db", "dir/c:1&2", "none.db"]
    made = set_cookie({"a.db": 2, "dir/c:1&2": 3, "none.db": 0}, databases)
    assert made is not None
    value = made.partition(b";")[0]
    assert cookie_positions([b"a=b; " + value], databases) == {"a.db": 2, "dir/c:1&2": 3}
