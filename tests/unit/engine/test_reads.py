"""Sync pages, history bounds, conversation order: against the model store."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hongyan.engine import reads
from hongyan.engine.reads import PAGE_BYTES, SLICE, TURN_MS, Reader, Turn, item_bytes
from hongyan.engine.sessions import Session
from hongyan.errors import Refused
from hongyan.protocol.codec import JSON, MSGPACK
from hongyan.protocol.names import direct_key
from hongyan.protocol.state import Changes, Conversation, Membership, Message, User
from memory_store import MemoryStore


class World:
    """alice and some conversations, filled by hand."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.acks: dict[str, int] = {}
        self.now_ms = 0
        self.reader = Reader(self.store, lambda owner, key: self.acks.get(key, 0), lambda: self.now_ms)
        changes = Changes()
        changes.users = {name: User(1) for name in ("alice", "bob", "carol")}
        self.store.apply(1, changes)
        self.session = Session(1, "alice", "d", 1, "s")

    def turn(self) -> Turn:
        return Turn(self.reader._share, self.reader._monotonic_ms)

    def fill(self, sender: str, key: str, count: int, content: bytes = b'"x"', first_seq: int = 1) -> None:
        changes = Changes()
        last = (self.store.conversation(key) or Conversation(0, 0)).last_seq
        for seq in range(last + 1, last + count + 1):
            changes.messages.append(Message(key, seq, seq, 1000 + seq, sender, f"k{seq}", "text", content))
        changes.conversations[key] = Conversation(last + count, 1000 + last + count)
        if ("alice", key) not in self.store.rows:
            changes.memberships["alice", key] = Membership(first_seq, 5, 1)
        self.store.apply(self.store.offset + 1, changes)

    async def sync_all(self, limit: int, cursors: dict[str, int] | None = None) -> list[tuple[str, int]]:
        got: list[tuple[str, int]] = []
        page = None
        while True:
            reply = await self.reader.sync(self.turn(), self.session, limit, cursors or {}, page)
            assert len(reply.items) <= limit
            got += [(item.conversation, item.message.seq) for item in reply.items]
            page = reply.page
            assert (page is None) == (not reply.has_more)
            if page is None:
                return got


AB, AC = direct_key("alice", "bob"), direct_key("alice", "carol")


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500])
@pytest.mark.parametrize("starts", [1, 2, 20_000])
async def test_sync_gives_each_message_once_ascending(
    limit: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "MAX_STARTS", starts)
    world = World()
    world.fill("bob", AB, 5)
    world.fill("alice", AC, 3)
    world.fill("bob", "#g", 4, first_seq=3)
    got = await world.sync_all(limit)
    assert sorted(got) == sorted(
        [("@bob", n) for n in range(1, 6)] + [("@carol", n) for n in range(1, 4)] + [("#g", 3), ("#g", 4)]
    )
    for name in ("@bob", "@carol", "#g"):
        seqs = [seq for conversation, seq in got if conversation == name]
        assert seqs == sorted(seqs)


async def test_given_cursors_replace_the_devices_and_stay_above_first_seq() -> None:
    world = World()
    world.fill("bob", AB, 5)
    world.fill("bob", "#g", 4, first_seq=3)
    world.acks[AB] = 4
    assert await world.sync_all(9) == [("#g", 3), ("#g", 4), ("@bob", 5)]
    assert await world.sync_all(9, {"@bob": 2, "#g": 0}) == [
        ("#g", 3), ("#g", 4), ("@bob", 3), ("@bob", 4), ("@bob", 5),
    ]  # fmt: skip


async def test_acks_and_new_messages_do_not_change_a_sync_under_way() -> None:
    world = World()
    world.fill("bob", "#g", 2)
    world.fill("bob", AB, 3)
    first = await world.reader.sync(world.turn(), world.session, 1, {}, None)
    world.acks.update({AB: 3, "#g": 2})
    world.fill("bob", "#g", 1)
    rest = await world.reader.sync(world.turn(), world.session, 500, {}, first.page)
    got = [(item.conversation, item.message.seq) for item in (*first.items, *rest.items)]
    assert got == [("#g", 1), ("#g", 2), ("@bob", 1), ("@bob", 2), ("@bob", 3)], "the third of #g is a push"


async def test_leaving_ends_a_conversation_inside_a_sync() -> None:
    world = World()
    world.fill("bob", "#g", 5)
    world.fill("bob", AB, 1)
    first = await world.reader.sync(world.turn(), world.session, 2, {}, None)
    changes = Changes()
    changes.memberships["alice", "#g"] = None
    world.store.apply(world.store.offset + 1, changes)
    rest = await world.reader.sync(world.turn(), world.session, 500, {}, first.page)
    assert [(item.conversation, item.message.seq) for item in rest.items] == [("@bob", 1)]


@pytest.mark.parametrize(
    "page",
    [
        "",
        "x",
        "1.0.0",
        "9.0.0.5",
        "1.99.0.5",
        "1.-1.0.5",
        "1.0.0.5.6",
        "1.0.9.5",
        "1.0.-2.5",
        "1.0.0." + "9" * 30,
    ],
)
async def test_a_foreign_page_is_refused_with_after_sync(page: str) -> None:
    world = World()
    world.fill("bob", AB, 3)
    await world.reader.sync(world.turn(), world.session, 1, {}, None)
    with pytest.raises(Refused) as refusal:
        await world.reader.sync(world.turn(), world.session, 1, {}, page)
    assert (refusal.value.error.code, refusal.value.error.retry.value) == ("invalid_field", "after_sync")


async def test_pages_are_bounded_in_bytes_but_hold_one_item() -> None:
    world = World()
    big = b'"' + b"x" * 100_000 + b'"'
    world.fill("bob", AB, 7, big)
    page, sizes = None, []
    while True:
        reply = await world.reader.sync(world.turn(), world.session, 500, {}, page)
        sizes.append(len(reply.items))
        assert sum(item_bytes(item.message) for item in reply.items) <= PAGE_BYTES
        if (page := reply.page) is None:
            break
    assert sum(sizes) == 7 and max(sizes) == 2
    huge = World()
    huge.fill("bob", AB, 2, b'"' + b"x" * 390_000 + b'"')
    assert await huge.sync_all(500) == [("@bob", 1), ("@bob", 2)]


@pytest.mark.parametrize(
    ("before", "after", "limit", "seqs", "more"),
    [
        (None, None, 3, [8, 9, 10], True),
        (None, None, 50, list(range(3, 11)), False),
        (8, None, 2, [6, 7], True),
        (5, None, 50, [3, 4], False),
        (5, None, 1, [4], True),
        (None, 4, 3, [5, 6, 7], True),
        (None, 7, 3, [8, 9, 10], False),
        (7, 4, 50, [5, 6], False),
        (7, 4, 1, [5], True),
        (None, 0, 2, [3, 4], True),
        (None, 10, 5, [], False),
        (3, None, 5, [], False),
        (4, 3, 5, [], False),
    ],
)
async def test_history_bounds_are_exclusive(
    before: int | None, after: int | None, limit: int, seqs: list[int], more: bool
) -> None:
    world = World()
    world.fill("bob", "#g", 10, first_seq=3)
    page = await world.reader.history(world.session, "#g", before, after, limit)
    assert ([item.message.seq for item in page.items], page.has_more) == (seqs, more)


async def test_history_of_nobody_and_of_strangers() -> None:
    world = World()
    assert (await world.reader.history(world.session, "@bob", None, None, 5)).items == ()
    for address, code in (("@nobody", "unknown_user"), ("#none", "unknown_group")):
        with pytest.raises(Refused) as refusal:
            await world.reader.history(world.session, address, None, None, 5)
        assert refusal.value.error.code == code


@pytest.mark.parametrize("limit", [1, 2, 10])
async def test_conversations_newest_first(limit: int) -> None:
    world = World()
    world.fill("bob", AB, 1)
    world.fill("carol", AC, 5)
    world.fill("bob", "#empty-for-alice", 9, first_seq=10)
    names, page = [], None
    while True:
        reply = await world.reader.conversations(world.turn(), world.session, limit, page)
        names += [
            (item.conversation, item.last_message and item.last_message.message.seq) for item in reply.items
        ]
        if (page := reply.page) is None:
            break
    assert names == [("@carol", 5), ("@bob", 1), ("#empty-for-alice", None)]
    with pytest.raises(Refused):
        await world.reader.conversations(world.turn(), world.session, 1, "!!")


class Ticking(World):
    """Every look at the clock takes a millisecond."""

    def __init__(self) -> None:
        super().__init__()
        ticks = itertools.count()
        self.reader = Reader(self.store, lambda owner, key: self.acks.get(key, 0), lambda: next(ticks))

    def leave(self, group: str) -> None:
        changes = Changes()
        changes.memberships["alice", group] = None
        self.store.apply(self.store.offset + 1, changes)

    def join(self, group: str) -> None:
        changes = Changes()
        changes.memberships["alice", group] = Membership(self.store.chats[group].last_seq + 1, 5, 1)
        self.store.apply(self.store.offset + 1, changes)


async def read(world: World, what: str, limit: int = 500) -> list[str]:
    """The conversations of which a page of everything has a message."""
    if what == "sync":
        return [
            item.conversation
            for item in (await world.reader.sync(world.turn(), world.session, limit, {}, None)).items
        ]
    page = await world.reader.conversations(world.turn(), world.session, limit, None)
    return [item.conversation for item in page.items if item.last_message is not None]


async def turns_of(work: Coroutine[Any, Any, list[str]]) -> tuple[int, list[str]]:
    """How often others had the loop meanwhile, and what came of it."""
    task = asyncio.create_task(work)
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    return turns, task.result()


@pytest.mark.parametrize("what", ["sync", "conversations"])
async def test_a_page_of_many_conversations_lets_others_have_their_turn(what: str) -> None:
    world = Ticking()
    for n in range(200):
        world.fill("bob", f"#g{n}", 1)
    turns, found = await turns_of(read(world, what))
    assert len(found) == 200
    assert turns > 200 / TURN_MS / 2, "a look at the clock for each conversation, a turn every TURN_MS"


@pytest.mark.parametrize("what", ["sync", "conversations"])
async def test_a_walk_over_many_conversations_lets_others_have_their_turn(what: str) -> None:
    world = Ticking()
    for n in range(20 * SLICE):
        world.fill("bob", f"#g{n}", 1)
        world.acks[f"#g{n}"] = 1
    turns, found = await turns_of(read(world, what, 1))
    assert len(found) == (0 if what == "sync" else 1)
    assert turns > 20 / TURN_MS / 2


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("what", ["sync", "conversations"])
async def test_who_leaves_while_a_page_is_made_gets_nothing_of_the_group(what: str, again: bool) -> None:
    """Whenever it happens: before the group is read, or after. Joining again shows what comes from then on."""
    seen = set()
    for moment in itertools.count():
        world = Ticking()
        for n in range(8):
            world.fill("bob", f"#g{n}", 1)
        world.fill("bob", AB, 1)
        page = asyncio.create_task(read(world, what))
        for _ in range(moment):
            await asyncio.sleep(0)
        late = page.done()
        world.leave("#g3")
        if again:
            world.join("#g3")
        found = await page
        if late:
            assert found.count("#g3") == 1
            break
        assert "#g3" not in found, moment
        assert len(set(found)) == 8
        seen.add(moment)
    assert len(seen) > 2


@pytest.mark.parametrize("limit", [1, 3, 7])
async def test_conversations_of_one_time_are_each_on_one_page(limit: int) -> None:
    world = Ticking()
    for n in range(20):
        world.fill("bob", f"#g{n}", 1)
    names, page = [], None
    while True:
        reply = await world.reader.conversations(world.turn(), world.session, limit, page)
        assert len(reply.items) <= limit
        names += [item.conversation for item in reply.items]
        if (page := reply.page) is None:
            break
    assert sorted(names) == sorted(f"#g{n}" for n in range(20))


async def test_pages_of_conversations_are_bounded_in_bytes() -> None:
    world = World()
    for n in range(7):
        world.fill("bob", f"#g{n}", 1, b'"' + b"x" * 100_000 + b'"')
    names, page, sizes = [], None, []
    while True:
        reply = await world.reader.conversations(world.turn(), world.session, 500, page)
        names += [item.conversation for item in reply.items]
        sizes.append(len(reply.items))
        if (page := reply.page) is None:
            break
    assert sorted(names) == [f"#g{n}" for n in range(7)] and max(sizes) == 2


@pytest.mark.parametrize("after", [None, 0])
async def test_history_is_bounded_in_bytes_from_the_end_that_was_asked_for(after: int | None) -> None:
    world = World()
    world.fill("bob", AB, 7, b'"' + b"x" * 100_000 + b'"')
    page = await world.reader.history(world.session, "@bob", None, after, 50)
    assert [item.message.seq for item in page.items] == ([1, 2] if after == 0 else [6, 7])
    assert page.has_more


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
    content=st.recursive(st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=9),
                         lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner)),
    size=st.integers(1, 64), seq=st.integers(1, 2**40),
)  # fmt: skip
@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_no_item_is_larger_than_it_is_weighed(
    codec: Any, key: str, content: Any, size: int, seq: int
) -> None:
    """And a page of ordinary ones holds as many as may be asked for."""
    name = "x" * size
    key = key[:64]
    made = Message(f"{name}|{name}", seq, 2**62, 2**41, name, key, name, msgspec.json.encode(content))
    assert len(bytes(codec.item(f"@{name}", made, True))) + 1 <= item_bytes(made)
    assert 500 * item_bytes(Message("ann|ben", seq, 1, 1, "ann", "0" * 36, "text", b'"hello"')) <= PAGE_BYTES
