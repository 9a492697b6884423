"""Devices in the fold: where one starts, which one is forgotten, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fold import Fold
from hongyan.engine.sequencer import USED_EVERY_MS
from hongyan.protocol import records
from hongyan.protocol.names import direct_key
from hongyan.protocol.state import Membership

AB = direct_key("alice", "bob")


def with_messages(count: int, *devices: str) -> Fold:
    """bob has sent alice `count` messages; alice has these devices."""
    fold = Fold()
    fold.login("bob")
    for device in devices:
        fold.login("alice", device)
    for n in range(count):
        fold.send("bob", "alice", str(n))
    return fold


def cursor(fold: Fold, device: str, conversation: str = AB) -> int:
    row, user = fold.store.rows["alice", conversation], fold.store.users["alice"]
    return max(row.first_seq - 1, row.cursor(user.devices[device].number))


def test_a_new_device_starts_where_the_furthest_stands_and_stays_there() -> None:
    fold = with_messages(9, "one", "early")
    fold.ack("alice", AB, 3, "one")
    fold.ack("alice", AB, 2, "one")
    fold.login("alice", "two")
    assert [cursor(fold, device) for device in ("one", "early", "two")] == [3, 0, 3]
    fold.ack("alice", AB, 5, "one")
    assert [cursor(fold, device) for device in ("one", "early", "two")] == [5, 0, 3], "fixed at its login"
    fold.login("alice", "three")
    fold.ack("alice", AB, 9, "two")
    assert [cursor(fold, device) for device in ("one", "early", "two", "three")] == [5, 0, 9, 5]
    fold.login("alice", "four", max_devices=3)
    fold.login("alice", "five", max_devices=3)
    assert cursor(fold, "five") == 9


def test_two_moves_and_a_first_login_in_one_batch() -> None:
    fold = with_messages(9, "one")

    def acked(seq: int, device: str) -> records.Cursors:
        return records.Cursors(fold.id(), fold.now, [("alice", device, {AB: seq})], [])

    fold.batch([
        acked(2, "one"), records.Login(fold.id(), fold.now, "alice", "two", ""), acked(4, "one"),
        records.Login(fold.id(), fold.now, "alice", "three", ""), acked(3, "two"), acked(6, "one"),
    ])  # fmt: skip
    assert [cursor(fold, device) for device in ("one", "two", "three")] == [6, 3, 4]


def test_what_came_after_a_devices_first_login_it_gets_from_the_beginning() -> None:
    fold = with_messages(0, "one", "two")
    fold.send("bob", "alice", "k")
    fold.create("bob")
    fold.send("bob", "#g", "k")
    fold.join("alice")
    fold.send("bob", "#g", "k2")
    fold.ack("alice", AB, 1, "one")
    fold.ack("alice", "#g", 2, "one")
    assert (cursor(fold, "two"), cursor(fold, "two", "#g")) == (0, 1)
    fold.leave("alice")
    fold.send("bob", "#g", "k3")
    fold.join("alice")
    fold.login("alice", "three")
    assert [cursor(fold, device, "#g") for device in ("one", "two", "three")] == [3, 3, 3], "joined again"


def test_a_first_login_writes_the_user_and_nothing_else() -> None:
    fold = with_messages(1, "one")
    fold.ack("alice", AB, 1, "one")
    fold.login("alice", "two")
    assert fold.sequencer.changes.memberships == {}


def test_a_row_holds_no_more_entries_than_devices_are_remembered() -> None:
    fold = with_messages(60, "phone")
    for n in range(50):
        fold.now += 1
        fold.ack("alice", AB, n + 1, "phone")
        fold.login("alice", f"web-{n}", max_devices=4, in_use=["phone"])
    row, user = fold.store.rows["alice", AB], fold.store.users["alice"]
    assert len(user.devices) == 4 and "phone" in user.devices
    assert len(row.cursors) <= 4
    assert cursor(fold, "phone") == 50


def test_the_device_unused_for_longest_is_forgotten_and_would_be_new() -> None:
    fold = Fold()
    for device in ("a", "b", "c"):
        fold.now += 1
        fold.login("alice", device, max_devices=2)
    assert set(fold.store.users["alice"].devices) == {"b", "c"}
    numbers = [device.number for device in fold.store.users["alice"].devices.values()]
    fold.login("alice", "a")
    assert fold.store.users["alice"].devices["a"].number not in numbers


def test_a_device_in_use_is_never_forgotten() -> None:
    fold = Fold()
    for device in ("a", "b", "c", "d"):
        fold.now += 1
        fold.login("alice", device, max_devices=2, in_use=["a"])
    assert set(fold.store.users["alice"].devices) == {"a", "d"}
    fold.login("alice", "e", max_devices=2, in_use=["a", "d"])
    assert set(fold.store.users["alice"].devices) == {"a", "d", "e"}, "rather one more than one of these"
    fold.login("alice", "f", max_devices=2, in_use=["e"])
    assert set(fold.store.users["alice"].devices) == {"e", "f"}


def test_a_first_login_that_waited_in_the_log_does_not_forget_itself() -> None:
    fold = Fold()
    fold.login("alice", "a")
    fold.now -= 5
    fold.login("alice", "b", max_devices=1)
    assert set(fold.store.users["alice"].devices) == {"b"}


def test_an_acknowledgement_is_a_use_written_once_an_hour() -> None:
    fold = with_messages(9, "phone")
    fold.now += USED_EVERY_MS
    fold.ack("alice", AB, 1, "phone")
    assert fold.sequencer.changes.users == {}
    fold.login("alice", "web")
    fold.now += 1
    fold.ack("alice", AB, 2, "phone")
    assert fold.store.users["alice"].devices["phone"].last_used == fold.now
    fold.login("alice", "new", max_devices=2)
    assert set(fold.store.users["alice"].devices) == {"phone", "new"}


USERS, DEVICES = ("alice", "bob"), ("a", "b", "c", "d")
CONVERSATIONS = (AB, direct_key("alice", "alice"), "#g")
user, device = st.sampled_from(USERS), st.sampled_from(DEVICES)
step = st.one_of(
    st.tuples(st.just("send"), user, st.sampled_from(CONVERSATIONS)),
    st.tuples(
        st.just("login"), user, device, st.integers(1, 3), st.lists(device, max_size=2), st.integers(0, 2)
    ),
    st.tuples(st.just("ack"), user, device, st.sampled_from(CONVERSATIONS), st.integers(0, 12)),
    st.tuples(st.just("seen"), user, device),
    st.tuples(st.just("leave"), user),
    st.tuples(st.just("join"), user),
)


@dataclass
class Model:
    """Every device with every cursor, written out at its first login: the rule, at any cost."""

    last: dict[str, int] = field(default_factory=dict)
    first: dict[tuple[str, str], int] = field(default_factory=dict)  # of members
    used: dict[tuple[str, str], int] = field(default_factory=dict)  # of remembered devices
    at: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def devices(self, user: str) -> list[str]:
        return [device for owner, device in self.used if owner == user]

    def cursor(self, user: str, device: str, conversation: str) -> int:
        return self.at.get((user, device, conversation), self.first[user, conversation] - 1)

    def login(self, user: str, device: str, now: int, limit: int, in_use: list[str]) -> None:
        others = self.devices(user)
        if device in others:
            return
        for conversation in CONVERSATIONS if others else ():
            if (user, conversation) in self.first:
                start = max(self.cursor(user, other, conversation) for other in others)
                self.at[user, device, conversation] = start
        self.used[user, device] = now
        idle = [other for other in others if other not in in_use]
        idle.sort(key=lambda other: self.used[user, other])
        for other in idle[: max(0, len(others) + 1 - limit)]:
            del self.used[user, other]
            self.at = {place: seq for place, seq in self.at.items() if place[:2] != (user, other)}

    def ack(self, user: str, device: str, conversation: str, seq: int) -> None:
        if (user, device) in self.used and (user, conversation) in self.first:
            now = self.cursor(user, device, conversation)
            self.at[user, device, conversation] = max(now, seq)

    def leave(self, user: str) -> None:
        self.first.pop((user, "#g"), None)
        self.at = {place: seq for place, seq in self.at.items() if place[::2] != (user, "#g")}


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(step, max_size=30), batch=st.integers(1, 4))
def test_cursors_are_those_of_a_model_that_writes_every_start_down(
    steps: list[tuple[object, ...]], batch: int
) -> None:
    fold, model = Fold(), Model()
    waiting: list[records.Record] = []
    for name in USERS:
        fold.login(name, "a")
        model.login(name, "a", fold.now, 9, [])
    fold.create("alice")
    model.last["#g"] = 0
    model.first["alice", "#g"] = 1
    for number, (kind, who, *rest) in enumerate(steps):
        fold.now += 10
        id, name = fold.id(), str(who)
        match kind, rest:
            case "send", [str(conversation)]:
                if conversation[0] == "#" and (name, conversation) not in model.first:
                    continue
                if conversation[0] != "#" and name not in conversation.split("|"):
                    continue
                waiting.append(records.Send(id, fold.now, name, conversation, str(id), "text", b"1"))
                model.last[conversation] = model.last.get(conversation, 0) + 1
                for member in conversation.split("|") if conversation[0] != "#" else ():
                    model.first.setdefault((member, conversation), 1)
            case "login", [str(device), int(limit), list(in_use), int(late)]:
                at = fold.now - late * 10 + late  # it waited in the log: the others' times are above
                waiting.append(records.Login(id, at, name, device, "", limit, in_use))
                model.login(name, device, at, limit, in_use)
            case "ack", [str(device), str(conversation), int(seq)]:
                seq = min(seq, model.last.get(conversation, 0))  # as it is when a record is made
                waiting.append(records.Cursors(id, fold.now, [(name, device, {conversation: seq})], []))
                model.ack(name, device, conversation, seq)
            case "seen", [str(device)]:
                waiting.append(records.Cursors(id, fold.now, [], [(name, device, fold.now)]))
                if (name, device) in model.used:
                    model.used[name, device] = fold.now
            case "leave", []:
                waiting.append(records.Leave(id, fold.now, name, "#g"))
                model.leave(name)
            case "join", []:
                waiting.append(records.Join(id, fold.now, name, "#g", 9, 9))
                model.first.setdefault((name, "#g"), model.last["#g"] + 1)
        if len(waiting) >= batch or number == len(steps) - 1:
            fold.batch(waiting)
            waiting = []
    if waiting:
        fold.batch(waiting)
    for name in USERS:
        found = fold.store.users[name]
        assert sorted(found.devices) == sorted(model.devices(name))
        for (owner, conversation), first in model.first.items():
            if owner != name:
                continue
            row = fold.store.rows[name, conversation]
            assert row.first_seq == first
            assert len(row.cursors) <= 4, "three remembered, one of them new"
            for device_id, known in found.devices.items():
                expected = model.cursor(name, device_id, conversation)
                assert max(row.cursor(known.number), first - 1) == expected


def test_a_row_is_written_the_same_whatever_the_order_of_a_set() -> None:
    row = Membership(1, 2, 1, {5: 3})
    moved = row.moved(5, 4, frozenset(range(1, 40)))
    assert list(moved.cursors) == sorted(moved.cursors)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(moved), type=Membership) == moved
