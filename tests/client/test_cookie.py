"""The cookie of what a visitor has written, the proxy's and the middleware's."""

from __future__ import annotations

import pytest

from litefs.client import cookie

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
        ([f"__txid={ONE}" * 4000], ["a.db"], {}),
        (["__txid=" + "&" * 60_000], ["a.db"], {}),
        ([], ["a.db"], {}),
    ],
)
def test_cookies_that_are_honoured(
    cookies: list[str], databases: list[str], expected: dict[str, int]
) -> None:
    assert cookie.parse(cookies, databases) == expected


def test_cookies_that_are_set() -> None:
    assert cookie.render({"a.db": 0xAB}, ["a.db"]) == "__txid=00000000000000ab; Path=/; Max-Age=300; HttpOnly"
    assert cookie.render({"a.db": 0}, ["a.db"]) is None
    databases = ["a.db", "dir/c:1&2", "none.db"]
    made = cookie.render({"a.db": 2, "dir/c:1&2": 3, "none.db": 0}, databases)
    assert made is not None
    value = made.partition(";")[0]
    assert cookie.parse(["a=b; " + value], databases) == {"a.db": 2, "dir/c:1&2": 3}
