"""The status page in a browser, on real nodes: it moves with commits, and tells when a node is gone."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.page.answers import many_databases, troubled
from tests.support.browser import Visit, browsing
from tests.support.node import Node, wait_present
from tests.support.processes import Client

ROWS = 60
OWN, REPORTS = "the-cluster's-own", "for-reports-only"

WATCH = """() => {
    Object.assign(window, { asked: 0, mutations: 0 });
    new MutationObserver((found) => { window.mutations += found.length; })
        .observe(document.querySelector("#databases-table"), {
            subtree: true, childList: true, attributes: true, characterData: true });
    new PerformanceObserver((found) => { window.asked += found.getEntries().length; })
        .observe({ type: "resource" });
}"""
"""Counts answers of the node and changes of the table of databases."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The module's browser; the pages of a test are closed after it."""
    yield chromium
    for context in chromium.contexts:
        context.close()


@pytest.fixture
def writer(make_client: Callable[..., Client]) -> Client:
    return make_client("sql", "sqlite3")


def create(writer: Client, node: Node, *names: str) -> None:
    """Databases with a table, on a primary; the last one stays open."""
    for name in names:
        writer.call("open", path=node.path(name))
        writer.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])


def insert(writer: Client, rows: int = ROWS) -> None:
    for number in range(rows):
        writer.call("execute", statement=f"INSERT INTO t VALUES({number})")


def row(visit: Visit, table: str, name: str) -> list[str]:
    """The cells of the row of that name."""
    found = visit.page.locator(f"{table} tbody tr").filter(has=visit.page.get_by_role("rowheader", name=name))
    return found.locator("th, td").all_text_contents()


def reach(curve: str) -> float:
    """How many pixels the curve of a plot goes up and down."""
    heights = [float(pair.partition(",")[2]) for pair in re.findall(r"[\d.]+,[\d.]+", curve)]
    return max(heights) - min(heights)


def test_commits_move_the_page(
    browser: Browser, primary_and_replica: tuple[Node, Node], writer: Client, tmp_path: Path
) -> None:
    primary, replica = primary_and_replica
    create(writer, primary, "other.db", "app.db")
    wait_present(replica, "app.db")
    visit, second = (
        Visit(browser, primary.url).open(),
        Visit(browser, replica.url, width=400, dark=True).open(),
    )
    visit.wait_text("#databases-table", "app.db")
    visit.wait_text("#events-state", "live")
    before = row(visit, "#databases-table", "app.db")[1]
    rates: set[str] = set()

    def writing() -> bool:
        insert(writer)
        rates.add(visit.text("#rate-now"))
        return any(rate[0] in "123456789" for rate in rates) and reach(curve(visit)) > 20

    def curve(of: Visit) -> str:
        paths = of.page.locator("#rate-plot path.curve")
        return paths.last.get_attribute("d") or "" if paths.count() else "0,0"

    until(writing, "the rate and its plot follow the commits")
    position = primary.position("app.db")
    assert position is not None
    for one in (visit, second):
        one.wait_text("#databases-table", f"{position.txid:016x}")
        one.wait_text("#events-list", f"TXID {position.txid:x}")
        one.wait_text("#databases-count", "2")
    assert f"{position.txid:016x}" != before
    assert visit.text("#role") == "Primary"
    assert second.text("#role") == "Replica"
    visit.wait_text("#databases-table", "on all replicas")
    visit.wait_text("#nodes", "up to date")
    own = os.environ.get("HOSTNAME") or socket.gethostname()
    assert row(visit, "#nodes", own)[1:3] == ["Replica", "up to date"]
    assert second.text("#hostname") == own
    assert row(second, "#nodes", "primary")[1:3] == ["Primary", "connected"]
    assert second.page.locator("#nodes a").get_attribute("href") == f"{primary.url}/"
    second.wait_text("#lag-now", "s")

    visit.page.get_by_role("button", name="Pause").click()
    visit.wait_text("#events-state", "paused, 0 events since")
    shown = visit.text("#events-list")
    insert(writer, 3)
    visit.wait_text("#events-state", "paused, 3 events since")
    assert visit.text("#events-list") == shown
    visit.page.get_by_role("button", name="Go on").click()
    visit.wait_text("#events-list", f"TXID {position.txid + 3:x}")

    assert second.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 27)"
    visit.shoot(tmp_path / "primary.png")
    second.shoot(tmp_path / "replica-400-dark.png")
    visit.page.set_viewport_size({"width": 400, "height": 800})
    for one in (visit, second):
        one.assert_clean()


def until(condition: Callable[[], bool], what: str, rounds: int = 40) -> None:
    assert any(condition() for _ in range(rounds)), what


def test_a_node_that_does_not_answer_and_a_replica_without_a_primary(
    browser: Browser, primary_and_replica: tuple[Node, Node], writer: Client, tmp_path: Path
) -> None:
    primary, replica = primary_and_replica
    create(writer, primary, "app.db")
    wait_present(replica, "app.db")
    visit, second = Visit(browser, primary.url).open(), Visit(browser, replica.url).open()
    for one in (visit, second):
        one.wait_text("#databases-table", "app.db")
        one.wait_text("#freshness", "live")
        assert one.page.locator("#notices .notice").count() == 0
    primary.kill("both")
    visit.wait_text("#notices", "The node does not answer. What is shown is of")
    assert re.fullmatch(r"no answer for \d+ s", visit.text("#freshness"))
    assert visit.page.title().startswith("No answer: primary")
    assert float(visit.page.evaluate("getComputedStyle(document.querySelector('main')).opacity")) < 1
    visit.wait_text("#events-state", "interrupted")
    second.wait_text("#notices", "This replica is not connected to its primary")
    assert row(second, "#nodes", "primary")[2] == "not connected"
    assert second.text("#freshness").startswith("live")
    second.assert_clean()
    visit.shoot(tmp_path / "dead.png")
    second.shoot(tmp_path / "no-primary.png")

    primary.start()
    for one in (visit, second):
        one.wait("() => !document.querySelector('#notices .notice')")
        one.wait_text("#freshness", "live")
    visit.wait_text("#events-state", "live")
    assert not visit.page.title().startswith("No answer")
    assert {error.partition(" (")[0] for error in visit.errors} <= {
        "Failed to load resource: net::ERR_CONNECTION_REFUSED",
        "Failed to load resource: net::ERR_CONNECTION_RESET",
        "Failed to load resource: net::ERR_INCOMPLETE_CHUNKED_ENCODING",
    }


def test_a_token_is_asked_for_and_limits_what_is_seen(
    browser: Browser, make_node: Callable[..., Node], writer: Client, tmp_path: Path
) -> None:
    tokens = [{"name": "reports", "token": REPORTS, "databases": ["reports*"]}]
    node = make_node("guarded", http={"auth-token": OWN, "tokens": tokens, "open": ["page"]})
    node.headers["Authorization"] = f"Bearer {OWN}"
    node.start()
    create(writer, node, "reports.db", "app.db")
    visit = Visit(browser, node.url).open()
    form = visit.page.get_by_label("Token")
    form.wait_for()
    assert not visit.page.locator("#content").is_visible()
    assert "guarded" not in visit.page.content()
    visit.shoot(tmp_path / "token.png")

    def give(token: str) -> None:
        form.fill(token)
        visit.page.get_by_role("button", name="Show the node").click()

    give("wrong")
    visit.wait_text("#token-message", "does not accept that token")
    form.wait_for()
    give(REPORTS)
    visit.wait_text("#databases-table", "reports.db")
    visit.wait_text("#databases-count", "1")
    assert "app.db" not in visit.page.content()
    visit.page.get_by_role("button", name="Forget the token").click()
    form.wait_for()
    give(OWN)
    visit.wait_text("#databases-table", "app.db")
    visit.wait_text("#events-state", "live")
    assert OWN not in visit.page.content()
    assert OWN not in visit.page.url
    visit.page.reload()  # the same tab: the token is still there
    visit.wait_text("#databases-table", "app.db")
    other = Visit(browser, node.url).open()
    other.page.get_by_label("Token").wait_for()
    assert {error.partition(" (")[0] for error in visit.errors} <= {
        "Failed to load resource: the server responded with a status of 401",
        "Failed to load resource: the server responded with a status of 403",
    }
    assert visit.hosts == other.hosts


def test_many_databases_and_every_kind_of_trouble(
    browser: Browser, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """The files come from a node, the answers of /status are made up: it is hard to have all that at once."""
    visit = Visit(browser, make_node("primary").start().url, width=400)
    answer = many_databases(500)
    visit.page.route("**/status", lambda route: route.fulfill(json=answer))
    visit.open()
    visit.wait_text("#databases-count", "500")
    visit.assert_clean()
    assert visit.page.locator("#databases-table tbody tr").count() == 500
    first = "#databases-table tbody th"
    assert visit.text(first) == "tenant-000.db"
    visit.page.get_by_role("button", name="Tx/s").click()
    visit.page.get_by_role("button", name="Name").click()
    visit.page.get_by_role("button", name="Name").click()
    visit.wait("() => document.querySelector('#databases-table [aria-sort]').ariaSort === 'descending'")
    assert visit.text(first) == "tenant-499.db"
    visit.page.get_by_label("Filter databases by name").fill("tenant-04")
    visit.wait_text("#databases-count", "10 of 500")
    assert visit.page.locator("#databases-table tbody tr").count() == 10
    # Rows that have not changed are not touched: with hundreds of them the page costs next to nothing.
    visit.page.evaluate(WATCH)
    visit.wait("() => window.asked >= 3")
    assert visit.page.evaluate("window.mutations") == 0

    answer.update(troubled())
    visit.wait_text("#notices", "damaged database")
    visit.wait_text("#notices", "held up by app.db: process 4711 (worker)")
    visit.wait_text("#notices", "not ready yet")
    visit.wait_text("#role", "Becoming a replica")
    visit.page.get_by_label("Filter databases by name").fill("")
    assert row(visit, "#databases-table", "<b>broken</b>.db")[3] == "damaged"
    visit.shoot(tmp_path / "troubled-400.png")
    visit.assert_clean()

    visit.page.unroute("**/status")
    visit.page.route("**/status", lambda route: route.fulfill(status=500, body="the disk hangs"))
    visit.wait_text("#notices", "The node answers with an error (500: the disk hangs)")


HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_tab_that_nobody_looks_at_and_a_replica_of_some_databases(
    browser: Browser, make_node: Callable[..., Node]
) -> None:
    visit = Visit(browser, make_node("primary").start().url)
    answer = many_databases(2)
    only, both = answer["replicas"][0]["databases"], answer["replicas"][1]["databases"]
    del only["tenant-001.db"]
    answer["databases"].append({**answer["databases"][0], "name": "of-nobody.db"})
    visit.page.route("**/status", lambda route: route.fulfill(json=answer))
    visit.open()
    visit.wait_text("#freshness", "live")
    assert row(visit, "#nodes", "replica-0")[2] == "up to date"
    assert row(visit, "#nodes", "replica-1")[2] == "2 transactions behind"
    assert row(visit, "#databases-table", "of-nobody.db")[3] == "on no replica"
    both["tenant-001.db"] = answer["databases"][1]["txid"]
    visit.wait("() => document.querySelector('#databases-table').textContent.includes('on 1 replica')")

    visit.page.evaluate(HIDE, True)
    visit.page.wait_for_timeout(6000)  # longer than a step of a plot, and than an answer is fresh
    assert visit.page.title().startswith("busy"), "nobody has asked it"
    visit.page.unroute("**/status")
    visit.page.route("**/status", lambda route: None)
    visit.page.evaluate(HIDE, False)
    visit.wait_text("#freshness", "asking again")
    assert "old" in (visit.page.locator("body").get_attribute("class") or "")
    visit.wait_text("#notices", "The node does not answer. What is shown is of")
    visit.page.unroute("**/status")
    visit.page.route("**/status", lambda route: route.fulfill(json=answer))
    visit.wait_text("#freshness", "live")
    visit.wait("() => document.querySelectorAll('#lag-plot path.curve').length === 2")
    visit.assert_clean()
