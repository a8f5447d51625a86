"""The status page's files: for everyone, telling nothing of the node, complete without any other host."""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpx
import pytest
import trio

from litefs.config_types import Secret
from litefs.server.page import page_files
from litefs.tokens import Tokens
from tests.server.support import FakeNode, client, serving

OWN = "the-cluster's-own"


def answer(
    method: str, path: str, tokens: Tokens | None = None, opened: Sequence[str] = (), **options: object
) -> httpx.Response:
    """What a node says to one request."""

    async def main() -> httpx.Response:
        with trio.fail_after(20):
            async with serving(FakeNode(), tokens=tokens, opened=opened) as url, client(**options) as http:
                return await http.request(method, url + path)

    return trio.run(main)


@pytest.mark.parametrize("path", sorted(page_files()))
def test_a_file_that_is_open_tells_nothing_of_the_node(path: str) -> None:
    tokens = Tokens(Secret(OWN))
    assert (answer("GET", path, tokens).status_code, answer("GET", path, tokens, ["health"]).content) == (
        401,
        b"",
    )
    response = answer("GET", path, tokens, ["page"])
    kind, content = page_files()[path]
    assert (response.status_code, response.content) == (200, content)
    assert response.headers["content-type"] == kind
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in response.headers if "litefs" in name]


def test_the_page_may_load_nothing_but_its_own_files() -> None:
    headers = answer("GET", "/").headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    sources = ("script-src", "style-src", "img-src", "connect-src")
    assert policy["default-src"] == "'none'"
    assert {policy[source] for source in sources} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert headers["referrer-policy"] == "no-referrer"


def test_the_files_name_each_other_and_no_other_host() -> None:
    files = page_files()
    texts = {path: content.decode() for path, (_, content) in files.items()}
    named = {f"/{name}" for name in re.findall(r'(?:href|src)="([^"#]+)"', texts["/"])}
    for path, text in texts.items():
        named |= {f"/static/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
        hosts = set(re.findall(r"https?://[\w.]+", text)) - {
            "http://www.w3.org"
        }  # the name of SVG, never asked
        assert not hosts, f"{path} names {hosts}"
    assert named == set(files) - {"/"}


def test_head_has_no_body_and_other_methods_are_not_for_the_page() -> None:
    head = answer("HEAD", "/", http1=True, http2=False)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(page_files()["/"][1])
    assert answer("POST", "/").status_code == 404
    assert answer("GET", "/static/../page.css").status_code == 404
    assert answer("POST", "/", Tokens(Secret(OWN))).status_code == 401
