"""The checker finds each kind of violation in histories made for it, and nothing in those that are right."""

from __future__ import annotations

import math
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from litefs.store.lost import keep_diverged
from tests.faults.checker import (
    LATE_SECONDS,
    late_answers,
    lost_violations,
    register_violations,
    session_violations,
    set_violations,
)
from tests.faults.history import Journal, Outcome, Pause, Progress, Read, Write, load, token
from tests.faults.kept import given_up, history, leaf_values
from tests.faults.terms import Reign, Terms, reigns
from tests.store.support import Writer, new_dir


def write(
    value: str,
    invoked: float,
    returned: float,
    *,
    node: str = "a",
    outcome: Outcome = "ok",
    previous: str = "",
) -> Write:
    return Write("wal", node, value, invoked, returned, outcome, previous)


TERMS = Terms([Reign(1, "a", 0), Reign(2, "b", 100), Reign(3, "a", 200)])
"""a leads from 0 s on, b from 100 s on, a again from 200 s on."""


class TestLateAnswers:
    def test_one_primary_after_the_other(self) -> None:
        history = [
            write("1", 50, 50.1),
            write("2", 101, 101.1, node="b"),
            write("3", 150, 150.1, node="b"),
            write("4", 201, 201.1),
        ]
        assert not late_answers(history, TERMS)

    @pytest.mark.parametrize("late", [write("2", 101.2, 101.3), write("2", 99, 101.2 + LATE_SECONDS)])
    def test_the_old_primary_still_answers(self, late: Write) -> None:
        other = write("1", 101, 101.1, node="b")
        (found,) = late_answers([late, other], TERMS)
        assert "of term 1 at most" in found
        assert not late_answers([replace(late, outcome="unknown"), other], TERMS)
        assert not late_answers([late, replace(other, outcome="unknown")], TERMS)

    def test_an_answer_that_was_noticed_late_proves_nothing(self) -> None:
        history = [write("1", 99, 101.2), write("2", 101, 101.1, node="b")]
        assert not late_answers(history, TERMS)

    def test_an_answer_that_may_be_of_the_next_term_proves_nothing(self) -> None:
        history = [write("1", 199, 200.5), write("2", 150, 150.1, node="b")]
        assert not late_answers(history, TERMS)

    def test_an_old_primary_answers_two_terms_later(self) -> None:
        terms = Terms([Reign(1, "a", 0), Reign(2, "b", 100), Reign(3, "c", 200)])
        history = [write("1", 201, 201.1, node="c"), write("2", 202, 202.1, node="a")]
        (found,) = late_answers(history, terms)
        assert "of term 3" in found

    def test_one_of_many_answers_is_late(self) -> None:
        history = [write(f"b{n}", 101 + n, 101.5 + n, node="b") for n in range(50)]
        history += [write("a", 130.2, 130.3)]
        assert len(late_answers(history, TERMS)) == 1

    def test_a_pause_holds_up_one_answer(self) -> None:
        pause = Pause("a", 99.5, 105)
        other, late = write("1", 101, 101.1, node="b"), write("2", 99.4, 105.1)
        assert not late_answers([late, other], TERMS, [pause])
        assert len(late_answers([late, replace(late, value="3"), other], TERMS, [pause])) == 1
        for elsewhere in (replace(pause, node="b"), replace(pause, begin=99.3), replace(pause, end=105.2)):
            assert len(late_answers([late, other], TERMS, [elsewhere])) == 1
        long_after = replace(late, returned=105.1 + LATE_SECONDS)
        assert len(late_answers([long_after, other], TERMS, [pause])) == 1

    def test_who_led_no_term_answers(self) -> None:
        (found,) = late_answers([write("1", 50, 50.1, node="c")], TERMS)
        assert "led no term" in found

    def test_two_nodes_lead_one_term(self) -> None:
        (found,) = late_answers([], Terms([Reign(1, "a", 0), Reign(1, "b", 50), Reign(2, "b", 60)]))
        assert found == "term 1 was led by two nodes"


class TestSets:
    HISTORY = (
        write("1", 1, 2),
        write("2", 3, 4, outcome="unknown"),
        write("3", 5, 6, outcome="failed"),
        write("4", 7, math.inf, outcome="unknown"),
    )

    @pytest.mark.parametrize("present", [["1"], ["1", "2"], ["1", "2", "4"]])
    def test_what_may_be_there(self, present: list[str]) -> None:
        assert not set_violations(self.HISTORY, present)

    @pytest.mark.parametrize(
        ("present", "problem"),
        [
            (["2"], "is missing at the end"),
            (["1", "3"], "never called"),
            (["1", "5"], "nobody wrote it"),
            (["1", "1"], "2 times"),
        ],
    )
    def test_what_may_not(self, present: list[str], problem: str) -> None:
        (found,) = set_violations(self.HISTORY, present)
        assert problem in found

    def test_what_was_lost_must_have_been_kept(self) -> None:
        assert not set_violations(self.HISTORY, [], lost={"1"})
        (found,) = set_violations(self.HISTORY, [], lost={"2"})
        assert "kept as lost" in found

    def test_what_was_kept_must_have_been_written(self) -> None:
        assert not lost_violations(self.HISTORY, {"1"}, {"1", "2", "4"})
        (found,) = lost_violations(self.HISTORY, {"1"}, {"2", "3"})
        assert "3 was kept" in found
        (found,) = lost_violations(self.HISTORY, {"1"}, {"6"})
        assert "6 was kept" in found


class TestRegister:
    HISTORY = (
        write("1", 1, 2, previous=""),
        write("2", 3, 9, previous="1", outcome="unknown"),
        write("3", 4, 5, previous="2"),
        write("4", 6, 7, previous="3", outcome="failed"),
        write("5", 8, 9, previous="3"),
    )

    def test_a_chain(self) -> None:
        assert not register_violations(self.HISTORY, "", "5")

    @pytest.mark.parametrize(
        ("changes", "final", "problem"),
        [
            ({}, "3", "5.*is missing"),
            ({}, "7", "breaks at '7'"),
            ({4: {"previous": "4"}}, "5", "4 is part of the register's history"),
            ({4: {"previous": "1"}}, "5", "3.*is missing"),  # two replaced the same value
            ({3: {"outcome": "ok"}}, "5", "4.*is missing"),
            ({4: {"invoked": 3.5, "returned": 3.8}}, "5", "5.*comes after.*3"),
            ({2: {"previous": "5"}}, "5", "breaks"),  # a circle
        ],
    )
    def test_what_is_no_chain(self, changes: dict[int, dict[str, object]], final: str, problem: str) -> None:
        history = list(self.HISTORY)
        for index, change in changes.items():
            history[index] = replace(history[index], **change)  # type: ignore[arg-type]
        found = register_violations(history, "", final)
        assert found
        assert any(re.search(problem, line) for line in found), found

    def test_a_branch_that_was_lost_and_kept(self) -> None:
        history = [*self.HISTORY, write("6", 10, 11, previous="3")]
        assert register_violations(history, "", "5")
        assert not register_violations(history, "", "5", lost={"6"})


def test_a_session_that_goes_back_in_one_row() -> None:
    nodes = ("a", "b")
    forth = Read("a", "b", 1.0, nodes, seen=(1, 5), found=(2, 5))
    back = Read("a", "c", 2.0, nodes, seen=(2, 5), found=(3, 4))
    assert not session_violations([forth])
    assert session_violations([forth, back]) == [f"{back} went back in the row of b"]
    assert session_violations([back], lost={token("session", "b", 4), token("session", "a", 5)})
    assert not session_violations([back], lost={token("session", "b", 5)})


def test_terms_are_read_from_a_log() -> None:
    log = (
        'time=1970-01-01T00:01:40.500Z level=INFO msg="term 3: promoting"\n'
        'time=1970-01-01T00:01:40.600Z level=INFO msg="term 3: primary"\n'
        "a line of something else\n"
        'time=1970-01-01T00:01:50.000Z level=INFO msg="term 5: promoting"\n'
    )
    assert reigns("a", log, 90.0) == [Reign(3, "a", 10.5), Reign(5, "a", 20.0)]


@pytest.mark.parametrize(
    ("invoked", "returned", "expected"),
    [
        (10, 11, [1]),
        (99.9, 100.2, [1]),
        (199.0, 199.9, [1]),
        (199.0, 200.1, [1, 2, 3]),  # it cannot be told which
        (200.02, 200.1, [1, 2, 3]),
        (201.0, 202.0, [3]),
    ],
)
def test_which_terms_an_answer_may_belong_to(invoked: float, returned: float, expected: list[int]) -> None:
    assert list(TERMS.possible("a", invoked, returned)) == expected


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "register", "a")
    one, two, three, four = (journal.next() for _ in range(4))
    journal.invoke(one)
    journal.end(one, "ok")
    journal.invoke(two, one)
    journal.end(two, "unknown")
    journal.failed(three)
    journal.read("b", ["a", "b"], [1, 2], [2, 2])
    journal.invoke(four, two)
    writes, reads = load(tmp_path)
    assert [(w.value, w.outcome, w.previous) for w in writes] == [
        (one, "ok", ""),
        (two, "unknown", one),
        (three, "failed", ""),
        (four, "unknown", two),
    ]
    assert writes[3].returned == math.inf
    assert all(w.invoked <= w.returned and (w.workload, w.node) == ("register", "a") for w in writes)
    assert [(r.session, r.node, r.nodes, r.seen, r.found) for r in reads] == [
        ("a", "b", ("a", "b"), (1, 2), (2, 2))
    ]
    progress = Progress(tmp_path)
    assert progress.counts() == {"register": 1}
    journal.end(four, "ok")
    assert progress.counts() == {"register": 2}
    assert progress.last[1] == "a"


def test_values_are_found_in_the_cells_of_a_database(tmp_path: Path) -> None:
    """Those of all rows, and of no row that is gone, whatever is left of it in the free space of pages."""
    path = tmp_path / "a.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA secure_delete=OFF")
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, value TEXT)")
    values = [token("wal", "a", number) for number in range(500)]
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t(value) VALUES(?)", [(value,) for value in values])
    connection.execute("COMMIT")
    gone = values[10:20]
    connection.execute("DELETE FROM t WHERE id BETWEEN 11 AND 20")
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    image = path.read_bytes()
    assert gone[5].encode() in image
    found: set[str] = set()
    for at in range(0, len(image), page_size):
        found |= leaf_values(image[at : at + page_size], at // page_size + 1)
    assert found == set(values) - set(gone)


def test_rows_of_given_up_transactions_are_listed(tmp_path: Path) -> None:
    """A node whose history goes on otherwise after the second row: what it had beyond that was kept."""
    values = [token("wal", "a", number) for number in range(6)]
    nodes = []
    for name, own in (("old", values[:4]), ("new", [*values[:2], *values[4:]])):
        directory = new_dir(tmp_path / name, "wal.db")
        writer = Writer(directory, tmp_path / f"{name}.db")
        writer.run("CREATE TABLE t(id INTEGER PRIMARY KEY, value TEXT)")
        for value in own:
            writer.run(f"INSERT INTO t(value) VALUES('{value}')")
        writer.db.sync()
        writer.close()
        nodes.append(directory)
    old, new = (directory.path.parents[1] for directory in nodes)
    assert keep_diverged(nodes[0], 3, "diverged") is not None
    remaining = history(new, "wal.db")
    assert len(remaining) == 5
    found = given_up(old, "wal.db", remaining)
    assert found - set(values[:2]) == set(values[2:4])
    assert given_up(old, "wal.db", remaining | history(old, "wal.db")) == set()
    assert given_up(old, "delete.db", remaining) == given_up(new, "wal.db", remaining) == set()
