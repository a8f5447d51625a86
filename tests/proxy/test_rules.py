"""Which way requests go."""

from __future__ import annotations

import pytest

from litefs.config_proxy import ProxyConfig
from litefs.proxy.rules import Kind, Rules, path_of, split_absolute

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
