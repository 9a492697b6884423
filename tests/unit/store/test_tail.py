"""The tail is written down bit by bit while newer rows come on top: no older write hides a newer row."""

from __future__ import annotations

import pytest

from hongyan.protocol.state import Changes, Conversation, Membership, User
from hongyan.store.tail import Tail
from store_rows import changes, message

OLD, NEW, NEWEST = Membership(1, 1, 1), Membership(2, 2, 2), Membership(3, 3, 3)
AT = ("alice", "#team")


def write_one(tail: Tail) -> int:
    count, last, written = tail.head(1, 1)
    assert count == 1
    tail.drop(count, written)
    return last


def is_empty(tail: Tail) -> bool:
    kept = (
        tail.batches,
        tail.conversations,
        tail.users,
        tail.memberships,
        tail.members,
        tail.messages,
        tail.sent,
    )
    return not any(kept) and tail.pending_rows == tail.pending_bytes == 0


@pytest.mark.parametrize(
    "rows",
    [[OLD, NEW], [OLD, None], [None, NEW], [None, None], [None, OLD, None], [OLD, None, NEW, None, NEWEST]],
    ids=str,
)
def test_a_membership_stays_the_newest_until_all_is_written(rows: list[Membership | None]) -> None:
    tail = Tail()
    for offset, row in enumerate(rows, 1):
        tail.add(offset, changes(memberships={AT: row}))
    for offset in range(1, len(rows) + 1):
        assert tail.memberships["alice"]["#team"] is rows[-1]
        assert write_one(tail) == offset
    assert is_empty(tail)


@pytest.mark.parametrize(
    "rows", [["a", "b"], ["a", None], [None, "a"], [None, None], [None, "a", None]], ids=str
)
def test_a_place_in_a_group_stays_the_newest_until_all_is_written(rows: list[str | None]) -> None:
    tail = Tail()
    for offset, row in enumerate(rows, 1):
        tail.add(offset, changes(members={("#team", 1): row}))
    for _ in rows:
        assert tail.members["#team"][1] is rows[-1]
        write_one(tail)
    assert is_empty(tail)


def test_a_key_used_again_is_found_where_it_went_last() -> None:
    tail = Tail()
    for seq in (1, 2, 3):
        tail.add(seq, changes(message("#team", seq, "same"), users={"alice": User(seq)}))
    for seq in (1, 2, 3):
        assert tail.sent["alice", "#team", "same"].seq == 3
        assert tail.users["alice"] == User(3)
        assert tail.conversations["#team"] == Conversation(3, 3)
        assert [kept.seq for kept in tail.messages["#team"]] == list(range(seq, 4))
        write_one(tail)
    assert is_empty(tail)


def test_batches_are_merged_whole_within_the_bounds() -> None:
    tail = Tail()
    for offset in range(1, 7):
        tail.add(offset, changes(message("#team", offset, size=1000), users={"alice": User(offset)}))
    rows, size = tail.pending_rows // 6, tail.pending_bytes // 6
    assert tail.head(1, 1 << 30)[:2] == (1, 1)  # one at least, however large
    assert tail.head(3 * rows, 1 << 30)[:2] == (3, 3)
    assert tail.head(3 * rows - 1, 1 << 30)[:2] == (2, 2)
    assert tail.head(1000, 4 * size)[:2] == (4, 4)
    count, last, merged = tail.head(1000, 1 << 30)
    assert (count, last) == (6, 6)
    assert [row.seq for row in merged.messages] == [1, 2, 3, 4, 5, 6]
    assert merged.users == {"alice": User(6)}
    tail.drop(count, merged)
    assert is_empty(tail)


def test_deletions_do_not_pile_up_in_a_tail_that_is_never_empty() -> None:
    tail = Tail()
    for offset in range(1, 100):
        tail.add(
            offset, changes(memberships={(f"u{offset}", "#team"): None}, members={("#team", offset): None})
        )
        if offset > 2:
            write_one(tail)
            assert len(tail.memberships) == len(tail.members["#team"]) == 2
            assert len(tail._left) == len(tail._freed) == 2


def test_an_empty_batch_is_written_too() -> None:
    tail = Tail()
    tail.add(5, Changes())
    assert write_one(tail) == 5
    assert is_empty(tail)
