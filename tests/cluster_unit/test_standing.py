"""Who may win, from positions alone."""

from __future__ import annotations

from litefs.cluster.lease import Beat, PrimaryInfo
from litefs.cluster.standing import Standing, advance, weigh
from litefs.types import Position

FLAG = 1 << 63
OTHER = PrimaryInfo("other", "http://other")


def at(txid: int, checksum: int = 0) -> Position:
    return Position(txid, FLAG | (checksum or txid))


def beat(positions: dict[str, Position], **more: object) -> Beat:
    return Beat(4, 2, OTHER, positions, **more)  # type: ignore[arg-type]


def yes(_name: str, _position: Position) -> bool:
    return True


def no(_name: str, _position: Position) -> bool:
    return False


def test_whoever_holds_all_that_was_published_may_win() -> None:
    published = beat({"a": at(5), "b": at(2)})
    assert weigh(published, 1, {"a": at(5), "b": at(2)}, no, no) == Standing()
    assert weigh(published, 1, {"a": at(9), "b": at(2), "c": at(1)}, yes, no) == Standing(beyond=5)
    assert weigh(None, 1, {"a": at(3)}, no, no) == Standing(beyond=3)


def test_what_is_missing_is_named_with_the_number_of_transactions() -> None:
    standing = weigh(beat({"a": at(5), "b": at(2), "c": at(1)}), 1, {"a": at(2), "b": at(1)}, yes, no)
    assert standing.obstacle == "a: 3 transactions behind; b: 1 transaction behind; c: 1 transaction behind"


def test_an_empty_node_never_wins_a_cluster_that_has_data() -> None:
    assert weigh(beat({"a": at(5)}), 1, {}, yes, no).obstacle == "a: 5 transactions behind"


def test_what_the_beat_still_names_though_it_was_removed_is_no_obstacle() -> None:
    published = beat({"a": at(5), "b": at(2)})
    own = {"b": at(2)}
    assert weigh(published, 1, own, no, no).obstacle == "a: 5 transactions behind"
    assert weigh(published, 1, own, no, lambda name, need: (name, need) == ("a", at(5))) == Standing()
    for made_anew in (at(3, checksum=77), at(9, checksum=77)):
        assert weigh(published, 1, own | {"a": made_anew}, no, yes) == Standing()


def test_another_history_is_no_advantage_however_long() -> None:
    standing = weigh(beat({"a": at(5)}), 1, {"a": at(9)}, no, no)
    assert standing.obstacle == "a: another history than the last primary's"
    assert weigh(beat({"a": at(5)}), 1, {"a": at(5, checksum=77)}, yes, no).obstacle == standing.obstacle


def test_only_members_win_while_replication_is_synchronous() -> None:
    own = {"a": at(5)}
    for in_sync, node_id, may in (((1,), 1, True), ((3,), 1, False), ((), 1, False), ((3,), 2, True)):
        standing = weigh(beat(own, in_sync=in_sync), node_id, own, yes, no)
        assert (not standing.obstacle) is may, (in_sync, node_id)
    assert not weigh(beat(own, in_sync=(3,), released=True), 1, own, yes, no).obstacle
    assert weigh(beat({"a": at(6)}, in_sync=(1,)), 1, own, yes, no).obstacle


def test_what_was_published_is_never_taken_back() -> None:
    own = {"a": at(9), "b": at(9)}
    assert advance({"a": at(7)}, {"a": at(3), "b": at(2)}, own) == {"a": at(7), "b": at(2)}
    assert advance({"a": at(7)}, {"a": at(8)}, own) == {"a": at(8)}
    assert advance({"a": at(7), "b": at(1)}, {"b": at(1)}, own) == {"b": at(1)}, "a was removed"


def test_a_database_made_anew_begins_anew() -> None:
    assert advance({"a": at(70)}, {"a": at(3)}, {"a": at(3)}) == {"a": at(3)}


def test_what_changed_last_comes_last() -> None:
    before = {"a": at(1), "b": at(1), "c": at(1)}
    now = {"a": at(2), "b": at(1), "c": at(1)}
    assert list(advance(before, now, now)) == ["b", "c", "a"]
