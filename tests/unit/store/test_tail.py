"""The tail is written down unit by unit while newer rows come on top: no older unit hides a newer row."""

from __future__ import annotations

import pytest

from hongyan.protocol.state import Changes, Conversation, Membership, User
from hongyan.store.tail import MISSING, UNIT_BYTES, UNIT_ROWS, Tail
from store_rows import changes, message

OLD, NEW, NEWEST = Membership(1, 1, 1), Membership(2, 2, 2), Membership(3, 3, 3)
AT = ("alice", "#team")


def add_as_unit(tail: Tail, offset: int, batch: Changes) -> None:
    """Add a batch that completes its unit."""
    tail.add(offset, batch)
    unit = tail.units[-1]
    tail.pending_rows += UNIT_ROWS - unit.rows
    unit.rows = UNIT_ROWS


def is_empty(tail: Tail) -> bool:
    return not tail.units and tail.pending_rows == tail.pending_bytes == 0


@pytest.mark.parametrize(
    "rows",
    [[OLD, NEW], [OLD, None], [None, NEW], [None, None], [None, OLD, None], [OLD, None, NEW, None, NEWEST]],
    ids=str,
)
@pytest.mark.parametrize("apart", [True, False], ids=["units", "one unit"])
def test_a_membership_stays_the_newest_until_all_is_written(
    rows: list[Membership | None], apart: bool
) -> None:
    tail = Tail()
    for offset, row in enumerate(rows, 1):
        (add_as_unit if apart else Tail.add)(tail, offset, changes(memberships={AT: row}))
    while tail.units:
        assert tail.membership(*AT) is rows[-1]
        assert tail.memberships("alice") == {"#team": rows[-1]}
        tail.drop()
    assert tail.membership(*AT) is MISSING
    assert tail.memberships("alice") == {}
    assert is_empty(tail)


@pytest.mark.parametrize(
    "rows", [["a", "b"], ["a", None], [None, "a"], [None, None], [None, "a", None]], ids=str
)
def test_a_place_in_a_group_stays_the_newest_until_all_is_written(rows: list[str | None]) -> None:
    tail = Tail()
    for offset, row in enumerate(rows, 1):
        add_as_unit(tail, offset, changes(members={("#team", 1): row}))
    for _ in rows:
        assert tail.members("#team") == {1: rows[-1]}
        tail.drop()
    assert tail.members("#team") == {}
    assert is_empty(tail)


def test_a_key_used_again_is_found_where_it_went_last() -> None:
    tail = Tail()
    for seq in (1, 2, 3):
        add_as_unit(tail, seq, changes(message("#team", seq, "same"), users={"alice": User(seq)}))
    for seq in (1, 2, 3):
        found = tail.find(("alice", "#team", "same"))
        assert found is not None
        assert found.seq == 3
        assert tail.user("alice") == User(3)
        assert tail.conversation("#team") == Conversation(3, 3)
        assert [kept.seq for kept in tail.messages("#team")] == list(range(seq, 4))
        tail.drop()
    assert tail.find(("alice", "#team", "same")) is None
    assert tail.user("alice") is MISSING
    assert tail.conversation("#team") is MISSING
    assert is_empty(tail)


def test_a_unit_takes_whole_batches_until_it_is_complete() -> None:
    tail = Tail()
    for offset in range(1, UNIT_ROWS):
        tail.add(offset, changes(message("#team", offset), users={"alice": User(offset)}))
        if len(tail.units) == 2:
            break
    first, second = tail.units
    assert UNIT_ROWS - 4 < first.rows <= UNIT_ROWS  # a message, where it went, its conversation, a user
    assert tail.ready
    assert first.offset == offset - 1
    assert [kept.seq for kept in first.messages["#team"]] == list(range(1, offset))
    assert first.users == {"alice": User(offset - 1)}
    assert second.offset == offset
    assert tail.pending_rows == first.rows + second.rows
    assert tail.pending_bytes == first.bytes + second.bytes


def test_large_messages_complete_a_unit_by_their_bytes() -> None:
    tail = Tail()
    count = 0
    while len(tail.units) < 2:
        count += 1
        tail.add(count, changes(message("#team", count, size=60_000)))
    assert count == UNIT_BYTES // 61_000 + 1
    assert tail.units[0].rows < UNIT_ROWS


def test_an_empty_batch_is_written_too() -> None:
    tail = Tail()
    tail.add(5, Changes())
    assert tail.units[0].offset == 5
    tail.drop()
    assert is_empty(tail)


def test_a_batch_larger_than_a_unit_is_one_alone() -> None:
    tail = Tail()
    tail.add(1, changes(message("#team", 1)))
    tail.add(2, changes(*[message("#team", seq) for seq in range(2, UNIT_ROWS + 2)]))
    tail.add(3, changes(message("#team", UNIT_ROWS + 2)))
    assert [unit.offset for unit in tail.units] == [1, 2, 3]
