"""The pure core of the client: bases, gaps, duplicates, acks, bounds."""

from __future__ import annotations

import random
from typing import Any

import pytest

from hongyan.client.inbox import Inbox
from hongyan.client.models import Message


def item(seq: int, conversation: str = "@bob", key: str | None = None) -> dict[str, Any]:
    return {
        "conversation": conversation, "from": "bob", "seq": seq, "content_type": "text", "content": seq,
        "message_id": str(seq), "timestamp": 0,
    } | ({"key": key} if key else {})  # fmt: skip


def message(seq: int, conversation: str = "@bob", key: str | None = None) -> Message:
    return Message.from_item(item(seq, conversation, key))


def inbox(capacity: int = 100, mine: set[str] | None = None) -> Inbox:
    """Connected; its first sync is due."""
    made = Inbox(capacity, (mine or set()).__contains__)
    made.connected()
    return made


def synced(*items: dict[str, Any], capacity: int = 100, mine: set[str] | None = None) -> Inbox:
    made = inbox(capacity, mine)
    sync(made, *items)
    return made


def sync(made: Inbox, *items: dict[str, Any]) -> dict[str, Any]:
    """Answer the sync that is due with these items. Returns what was asked."""
    read = made.next_read()
    assert read is not None
    assert read.type == "sync_offline"
    made.reply({"messages": list(items), "has_more": False, "page": None})
    return read.data


def taken(made: Inbox) -> list[int]:
    """The application takes everything."""
    found = []
    while (ready := made.take()) is not None:
        found.append(ready[1].seq)
        made.done(ready)
    return found


def test_first_item_of_a_sync_is_the_base() -> None:
    made = synced(item(41), item(42))
    made.push(message(43))
    assert taken(made) == [41, 42, 43]
    assert made.acks() == {"@bob": 43}
    assert made.next_read() is None


def test_first_push_after_a_sync_that_named_nothing_is_no_gap() -> None:
    made = synced()
    made.push(message(8))
    assert taken(made) == [8]
    assert made.next_read() is None


def test_pushes_ahead_of_the_sync_are_kept_and_not_acknowledged() -> None:
    made = inbox()
    made.push(message(5))
    made.push(message(6))
    assert taken(made) == []
    assert made.acks() == {}
    sync(made, item(3), item(4), item(5))
    assert taken(made) == [3, 4, 5, 6]
    assert made.acks() == {"@bob": 6}


def test_push_during_a_sync_that_never_names_its_conversation() -> None:
    made = inbox()
    made.push(message(9))
    sync(made)
    assert taken(made) == [9]


def test_sync_goes_through_its_pages() -> None:
    made = inbox()
    assert made.next_read() is not None
    assert made.next_read() is None
    made.reply({"messages": [], "has_more": True, "page": "p2"})
    second = made.next_read()
    assert second is not None
    assert second.data["page"] == "p2"
    assert not made.complete
    made.reply({"messages": [item(1)], "has_more": False, "page": None})
    assert made.complete


def test_gap_is_asked_for_and_filled_before_what_lies_behind() -> None:
    made = synced(item(1))
    made.push(message(4))
    assert taken(made) == [1]
    assert made.acks() == {"@bob": 1}
    read = made.next_read()
    assert read is not None
    assert (read.type, read.data["conversation"], read.data["after"]) == ("history", "@bob", 1)
    made.push(message(5))
    made.reply({"conversation": "@bob", "messages": [item(2), item(3), item(4)], "has_more": False})
    assert taken(made) == [2, 3, 4, 5]
    assert made.complete


def test_a_hole_that_nobody_may_see_is_skipped() -> None:
    """Left and joined again elsewhere: what lies below `first_seq` is no gap."""
    made = synced(item(1, "#t"))
    made.push(message(9, "#t"))
    assert made.next_read() is not None
    made.reply({"conversation": "#t", "messages": [], "has_more": False})
    assert taken(made) == [1, 9]
    assert made.complete


def test_duplicates_are_dropped() -> None:
    made = synced(item(1), item(1), item(2))
    for seq in (1, 2, 3, 3, 2):
        made.push(message(seq))
    assert taken(made) == [1, 2, 3]


def test_own_acks_fill_their_places() -> None:
    made = synced(item(1))
    made.push(message(3))
    made.acknowledged("@bob", 2, duplicate=False)
    assert taken(made) == [1, 3]
    made.acknowledged("@bob", 4, duplicate=False)
    assert made.acks() == {"@bob": 4}
    assert made.next_read() is None


def test_own_message_of_a_lost_ack_is_not_handed_on() -> None:
    made = synced(item(1), item(2, key="k"), mine={"k"})
    assert taken(made) == [1]
    assert made.acks() == {"@bob": 2}
    made.acknowledged("@bob", 2, duplicate=True)
    made.push(message(3))
    assert taken(made) == [3]


def test_own_message_of_another_run_is_handed_on() -> None:
    assert taken(synced(item(1, key="from another device"))) == [1]


def test_a_duplicates_ack_says_nothing_about_the_base() -> None:
    made = synced()
    made.acknowledged("@bob", 3, duplicate=True)
    made.push(message(10))
    assert taken(made) == [10]
    assert made.next_read() is None


def test_only_taken_messages_are_acknowledged() -> None:
    made = synced(item(1), item(2), item(3))
    assert made.acks() == {}
    first, second = made.take(), made.take()
    assert first is not None
    assert second is not None
    made.done(first)
    assert made.acks() == {"@bob": 1}
    made.done(second)
    assert made.acks() == {"@bob": 2}
    assert made.acks() == {}


def test_after_a_loss_acks_go_again_and_the_next_sync_names_what_is_held() -> None:
    made = synced(item(1), item(2, "#t"), item(3, "#t"))
    first = made.take()
    assert first is not None
    made.done(first)
    assert made.acks() == {"@bob": 1}
    made.lost()
    made.connected()
    assert made.acks() == {"@bob": 1}
    assert sync(made, item(3, "#t"), item(4, "#t"))["cursors"] == {"#t": 3}
    assert taken(made) == [2, 3, 4]


def test_resync_asks_again_with_cursors() -> None:
    made = synced(item(1))
    made.resync()
    assert not made.complete
    assert sync(made, item(2))["cursors"] == {"@bob": 1}
    assert taken(made) == [1, 2]


def test_a_page_no_longer_known_starts_the_sync_again() -> None:
    made = inbox()
    made.next_read()
    made.reply({"messages": [item(1)], "has_more": True, "page": "p2"})
    made.next_read()
    made.read_failed("invalid_field", "after_sync")
    assert "page" not in sync(made, item(2))
    assert taken(made) == [1, 2]


def test_a_refused_hole_of_a_group_left_is_forgotten() -> None:
    made = synced(item(1, "#t"))
    made.push(message(5, "#t"))
    assert made.next_read() is not None
    made.read_failed("not_member", "never")
    assert made.complete
    assert taken(made) == [1]
    assert made.acks() == {}


def test_after_leaving_and_joining_again_the_base_is_new() -> None:
    made = synced(item(1, "#t"))
    made.left("#t")
    made.push(message(7, "#t"))
    assert taken(made) == [1, 7]
    assert made.next_read() is None


def test_a_full_queue_lets_pushes_go_and_reads_them_again() -> None:
    made = synced(capacity=10)
    for seq in range(1, 51):
        made.push(message(seq))
    assert len(made) <= 20
    assert made.next_read() is None  # no room
    got = taken(made)
    while (read := made.next_read()) is not None:
        after, limit = read.data["after"], read.data["limit"]
        assert limit <= 10
        found = [item(seq) for seq in range(after + 1, min(50, after + limit) + 1)]
        made.reply({"conversation": "@bob", "messages": found, "has_more": found[-1]["seq"] < 50})
        got += taken(made)
    assert got == list(range(1, 51))


@pytest.mark.parametrize("seed", range(60))
def test_any_life_gives_each_message_once_in_order(seed: int) -> None:
    """Losses, doubles, left-out pushes, own sends and lost connections; the model is two logs."""
    rng = random.Random(seed)
    logs = {name: rng.randrange(6) for name in ("@bob", "#t")}
    cursor = {name: rng.randrange(last + 1) for name, last in logs.items()}
    start = dict(cursor)
    own: dict[str, set[int]] = {name: set() for name in logs}
    got: dict[str, list[int]] = {name: [] for name in logs}
    made = inbox(capacity=8)

    def answer_reads(times: int) -> None:
        for _ in range(times):
            read = made.next_read()
            if read is None:
                return
            if read.type == "history":
                name, after = read.data["conversation"], read.data["after"]
                found = [item(s, name) for s in range(after + 1, logs[name] + 1)][: read.data["limit"]]
                made.reply({"messages": found, "has_more": False})
                continue
            if "page" in read.data:
                todo = read.data["page"]
            else:
                low = {name: read.data.get("cursors", {}).get(name, cursor[name]) for name in logs}
                todo = [item(s, name) for name in logs for s in range(low[name] + 1, logs[name] + 1)]
            now, later = todo[: read.data["limit"]], todo[read.data["limit"] :]
            made.reply({"messages": now, "has_more": bool(later), "page": later or None})

    def take(times: int) -> None:
        for _ in range(times):
            if (ready := made.take()) is not None:
                got[ready[1].conversation].append(ready[1].seq)
                made.done(ready)

    for _ in range(150):
        name = rng.choice(list(logs))
        match rng.randrange(9):
            case 0 | 1 | 2:
                logs[name] += 1
                # A base is learned from the first live seq, so a fault before it would break the contract.
                made.push(message(logs[name], name))
                if rng.random() < 0.3:
                    made.push(message(logs[name], name))
            case 3:
                logs[name] += 1
                own[name].add(logs[name])
                made.acknowledged(name, logs[name], duplicate=False)
            case 4:
                answer_reads(rng.randrange(3))
            case 5 | 6:
                take(rng.randrange(6))
            case 7:
                for acked, seq in made.acks().items():
                    assert seq <= logs[acked]
                    cursor[acked] = max(cursor[acked], seq)
            case 8 if rng.random() < 0.3:
                made.lost()
                logs[name] += rng.randrange(3)
                made.connected()
                for acked, seq in made.acks().items():
                    cursor[acked] = max(cursor[acked], seq)
    for _ in range(200):
        answer_reads(1)
        take(8)
    assert made.complete
    for name, last in logs.items():
        assert got[name] == [seq for seq in range(start[name] + 1, last + 1) if seq not in own[name]]
    for acked, seq in made.acks().items():
        cursor[acked] = max(cursor[acked], seq)
    assert cursor == logs
