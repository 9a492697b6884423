"""Every guarantee of `store/base.py`, for every adapter. A new adapter is done when it passes.

Each runs twice: with everything in memory and cache, and with a cache of two conversations and a tail
of three messages, where every read merges and every look-up evicts. The engine's unit tests stand on
`MemoryStore`, so it passes too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hongyan.protocol.state import Changes, Conversation, Device, Membership, Message, User
from hongyan.store.base import Store
from hongyan.store.rocks import RocksStore
from memory_store import MemoryStore
from store_rows import changes, everything, message, page_through

Opener = Callable[[], Awaitable[Store]]
SMALL = {"cache_conversations": 2, "tail_messages": 3}
READ_BYTES = 512 * 1024


@pytest.fixture(params=["rocks", "rocks-small", "memory"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def reopen(adapter: str, tmp_path: Path) -> AsyncIterator[Opener]:
    """`await reopen()` closes the store open before and opens it again (the first time: creates it)."""
    opened: list[Store] = []
    failures: list[BaseException] = []

    async def open_() -> Store:
        if adapter == "memory":
            opened[:] = opened or [MemoryStore()]
            return opened[0]
        if opened:
            await opened.pop().close()
        limits: dict[str, Any] = SMALL if adapter == "rocks-small" else {}
        opened.append(
            await asyncio.to_thread(
                RocksStore.open, tmp_path / "store", "journal-1", fatal=failures.append, **limits
            )
        )
        return opened[0]

    yield open_
    for store in opened:
        await store.close()
    assert not failures


@pytest.fixture
def settle(adapter: str, reopen: Opener) -> Callable[[Store, str], Awaitable[Store]]:
    """Where the rows are when they are read: in the tail, written down, or read by a new process."""

    async def move(store: Store, where: str) -> Store:
        if where == "disk":
            assert await store.sync() == store.offset
        return await reopen() if where == "reopened" else store

    return move


everywhere = pytest.mark.parametrize("where", ["tail", "disk", "reopened"])


async def test_a_new_store_is_empty(reopen: Opener) -> None:
    store = await reopen()
    assert store.offset == 0
    assert not store.full
    assert store.conversation("#team") is None
    assert store.user("alice") is None
    assert store.membership("alice", "#team") is None
    assert store.find("alice", "#team", "k") is None
    assert store.members("#team") == []
    assert store.memberships("alice") == []
    assert store.messages("#team", 1, 100, 10) == []
    assert store.messages("#team", 1, 100, 10, newest=True) == []
    assert await store.sync() == 0


@everywhere
async def test_every_row_comes_back_as_it_was(reopen: Opener, settle: Any, where: str) -> None:
    store = await reopen()
    sent = message("alice|bob", 1, key="é\x00鸿\U0001f9a2")
    team = Conversation(4, 5, "Team 鸿雁", "invite", "alice", "bob", 3, 9)
    alice = User(1, "$argon2id$…", {"web-1": Device(1, "web", 7), "d": Device(2, "", 8)}, 3, 2, 99)
    row = Membership(3, 4, 1, {1: 10, 2: 0})
    store.apply(
        7,
        changes(
            sent, conversations={"#team": team}, users={"alice": alice},
            memberships={("alice", "#team"): row}, members={("#team", 1): "alice"},
        ),
    )  # fmt: skip
    assert store.offset == 7
    store = await settle(store, where)
    assert store.offset == 7
    assert store.messages("alice|bob", 1, 1, 1) == [sent]
    found = store.find("alice", "alice|bob", sent.key)
    assert found is not None
    assert (found.seq, found.id, found.at) == (sent.seq, sent.id, sent.at)
    assert store.conversation("#team") == team
    assert store.user("alice") == alice
    assert store.membership("alice", "#team") == row
    assert store.memberships("alice") == [("#team", row), ("alice|bob", Membership(1, sent.at, 1))]
    assert store.members("#team") == [(1, "alice")]


@everywhere
async def test_the_last_row_wins_and_a_cached_absence_ends(reopen: Opener, settle: Any, where: str) -> None:
    store = await reopen()
    for offset in range(1, 8):
        assert (store.conversation("#team") is None) == (offset == 1)
        assert (store.membership("alice", "#team") is None) == (offset == 1)
        store.apply(
            offset,
            changes(
                conversations={"#team": Conversation(0, offset)}, users={"alice": User(offset)},
                memberships={("alice", "#team"): Membership(offset, 0, 1)}, members={("#team", 1): f"u{offset}"},
            ),
        )  # fmt: skip
        found = store.conversation("#team")
        assert found is not None
        assert found.last_at == offset
    store = await settle(store, where)
    assert store.conversation("#team") == Conversation(0, 7)
    assert store.user("alice") == User(7)
    assert store.membership("alice", "#team") == Membership(7, 0, 1)
    assert store.members("#team") == [(1, "u7")]


@everywhere
@pytest.mark.parametrize("before", ["tail", "disk"])
async def test_a_deleted_row_is_gone_and_may_come_again(
    reopen: Opener, settle: Any, before: str, where: str
) -> None:
    store = await reopen()
    rows: dict[tuple[str, str], Membership | None] = {
        ("alice", f"#g{n}"): Membership(n, 0, n) for n in range(1, 6)
    }
    store.apply(1, changes(memberships=rows, members={("#g1", n): f"u{n}" for n in range(1, 6)}))
    store = await settle(store, before)
    gone = changes(memberships={("alice", "#g2"): None}, members={("#g1", 3): None, ("#g1", 4): None})
    store.apply(2, gone)
    store = await settle(store, where)
    assert store.membership("alice", "#g2") is None
    assert [key for key, _ in store.memberships("alice")] == ["#g1", "#g3", "#g4", "#g5"]
    assert [key for key, _ in store.memberships("alice", limit=2)] == ["#g1", "#g3"]
    assert store.members("#g1") == [(1, "u1"), (2, "u2"), (5, "u5")]
    assert store.members("#g1", after=2, limit=1) == [(5, "u5")]
    store.apply(3, changes(memberships={("alice", "#g2"): Membership(9, 9, 9)}, members={("#g1", 6): "u3"}))
    store = await settle(store, where)
    assert store.membership("alice", "#g2") == Membership(9, 9, 9)
    assert dict(store.memberships("alice"))["#g2"] == Membership(9, 9, 9)
    assert store.members("#g1", after=2) == [(5, "u5"), (6, "u3")]


@pytest.mark.parametrize("written", [1, 2, 7, 60, 130], ids=lambda count: f"in runs of {count}")
async def test_find_sees_the_first_messages_of_a_conversation_and_the_later_ones(
    reopen: Opener, written: int
) -> None:
    """However they were written down: the first ones may be indexed in another way."""
    store = await reopen()
    # Keys and senders repeat: most pairs are used twice, some of them early and late.
    rows = [message("#t", seq, f"k{seq % 50}", "xyy"[seq % 3]) for seq in range(1, 131)]
    for first in range(0, 130, written):
        batch = rows[first : first + written]
        store.apply(batch[-1].seq, changes(*batch))
        assert store.find("x", "#t", batch[-1].key + "?") is None
        assert store.find(batch[0].sender, "#t", batch[0].key) is not None
        await store.sync()
        found = store.find(batch[-1].sender, "#t", batch[-1].key)  # and what is known by now grows
        assert found is not None
        assert found.seq == batch[-1].seq
    newest = {(row.sender, row.key): row for row in rows}
    for again in range(2):
        store = await reopen() if again else store
        for (sender, key), row in newest.items():
            found = store.find(sender, "#t", key)
            assert found is not None
            assert (found.seq, found.id, found.at) == (row.seq, row.id, row.at)
        for absent in ("z", "k1"), ("x", "k50"), ("y", "k"):
            assert store.find(absent[0], "#t", absent[1]) is None
        assert store.find("x", "#u", "k1") is None


@everywhere
async def test_find_gives_the_newest_of_a_key_and_confuses_no_two(
    reopen: Opener, settle: Any, where: str
) -> None:
    """Keys are any Unicode; sender, conversation and key are one name only together."""
    store = await reopen()
    names = [
        ("a", "a|b", "k"), ("a", "a|b", "\x00k"), ("a", "a|b", "k\x00"), ("a", "a|b", "\x00"),
        ("a", "a|b", "b\x00k"), ("a", "a|bb", "k"), ("b", "a|b", "k"), ("b", "a|bb", "\x00k"),
        ("a", "#a", "\U0010ffff" * 64), ("a", "#a", "é"), ("a", "#a", "e\u0301"), ("a\u002eb", "#a", "é"),
    ]  # fmt: skip
    last: dict[str, int] = {}
    expected: dict[tuple[str, str, str], int] = {}
    for offset, name in enumerate([*names, *names[:4]], 1):  # the first four twice: the newer one counts
        sender, conversation, key = name
        expected[name] = last[conversation] = last.get(conversation, 0) + 1
        store.apply(offset, changes(message(conversation, last[conversation], key, sender)))
    store = await settle(store, where)
    for name, seq in expected.items():
        found = store.find(*name)
        assert found is not None
        assert found.seq == seq
    assert store.find("a", "#a", "") is None
    assert store.find("a", "a", "b\x00a\x00k") is None


@everywhere
async def test_a_chat_may_begin_at_the_epoch(reopen: Opener, settle: Any, where: str) -> None:
    store = await reopen()
    first = Message("a|b", 1, 1, 0, "a", "k", "text", b"1")
    store.apply(1, changes(first))
    store = await settle(store, where)
    for user in "ab":
        assert store.memberships(user) == [("a|b", Membership(1, 0, 1))]


@everywhere
async def test_names_that_begin_alike_are_kept_apart(reopen: Opener, settle: Any, where: str) -> None:
    store = await reopen()
    names = ["#a", "#a-", "#a.b", "#aa", "a|b", "a|bb", "aa|b"]
    for offset, name in enumerate(names, 1):
        store.apply(
            offset,
            changes(
                message(name, 1, sender=name[:2].strip("#|")), memberships={("c" * offset, name): Membership(1, offset, 1)},
                members={(name, 1): f"u{offset}", (name, 256): "v"},
            ),
        )  # fmt: skip
    store = await settle(store, where)
    for offset, name in enumerate(names, 1):
        assert [found.conversation for found in store.messages(name, 0, 10, 10)] == [name]
        assert [found.conversation for found in store.messages(name, 0, 10, 10, newest=True)] == [name]
        assert store.messages(name, 2, 10, 10) == store.messages(name, 2, 10, 10, newest=True) == []
        assert store.members(name) == [(1, f"u{offset}"), (256, "v")]
        assert store.memberships("c" * offset) == [(name, Membership(1, offset, 1))]
    opened = {"a": ["a|b", "a|bb"], "b": ["aa|b", "a|b"], "bb": ["a|bb"], "aa": ["aa|b"], "aaa": []}
    for user, directs in opened.items():
        assert store.memberships(user) == [(name, Membership(1, 1, 1)) for name in directs]
        for name in names:
            assert (store.membership(user, name) is not None) == (name in directs)


@everywhere
async def test_pages_are_ascending_and_whole(reopen: Opener, settle: Any, where: str) -> None:
    """Half the rows are on disk before the other half comes between them."""
    store = await reopen()
    places = [*range(1, 20, 2), 255, 256, 65536, 2**40, *range(2, 20, 2), 257]
    for offset, place in enumerate(places, 1):
        store.apply(
            offset,
            changes(memberships={("alice", f"#{place}"): Membership(1, 1, place)},
                    members={("#team", place): f"u{place}"}),
        )  # fmt: skip
        if offset == len(places) // 2:
            await store.sync()
    store = await settle(store, where)
    for size in (1, 3, 1000):
        members = page_through(lambda after, limit: store.members("#team", after, limit), 0, size)
        assert members == [(place, f"u{place}") for place in sorted(places)]
        rows = page_through(lambda after, limit: store.memberships("alice", after, limit), "", size)
        assert [key for key, _ in rows] == sorted(f"#{place}" for place in places)
    assert store.members("#team", after=2**40) == []
    assert store.memberships("alice", after="#999") == []


@pytest.mark.parametrize("written", [0, 1, 17, 30], ids=lambda count: f"{count}-on-disk")
async def test_messages_of_a_range_from_either_end(reopen: Opener, written: int) -> None:
    store = await reopen()
    rows = [message("#team", seq) for seq in range(1, 31)]
    around = [message(name, 1) for name in ("#tea", "#team.", "#teas")]
    for offset, row in enumerate(rows, 1):
        others = around if offset == 2 else []
        store.apply(offset, changes(row, *others))
        if offset == written:
            await store.sync()
    for low in (0, 1, 2, 16, 17, 18, 30, 31):
        for high in (0, 1, 16, 17, 18, 29, 30, 2**40):
            whole = [row for row in rows if low <= row.seq <= high]
            for limit in (1, 2, 13, 500):
                assert store.messages("#team", low, high, limit) == whole[:limit]
                assert store.messages("#team", low, high, limit, newest=True) == whole[-limit:]


@everywhere
async def test_a_read_of_messages_is_bounded_in_bytes_but_never_empty(
    adapter: str, reopen: Opener, settle: Any, where: str
) -> None:
    if adapter == "memory":
        pytest.skip("a model: it bounds nothing")
    store = await reopen()
    sizes = [100, 60_000, 60_000, 700_000, 10, 10, *[80_000] * 10, READ_BYTES, 10]
    rows = [message("#team", seq, size=size) for seq, size in enumerate(sizes, 1)]
    for offset, row in enumerate(rows, 1):
        store.apply(offset, changes(row))
        if offset == len(rows) // 2:
            await store.sync()
    store = await settle(store, where)
    for newest in (False, True):
        got, low, high = 0, 1, len(rows)
        while low <= high:
            found = store.messages("#team", low, high, 500, newest)
            assert found, "a caller that goes on from what it got would never end"
            content = sum(len(row.content) for row in found)
            assert len(found) == 1 or content <= READ_BYTES
            expected = rows[high - len(found) : high] if newest else rows[low - 1 : low - 1 + len(found)]
            assert found == expected
            # no smaller than need be, either: the next one would not have fitted
            rest = high - len(found) if newest else low - 1 + len(found)
            if (rest >= low) if newest else (rest < high):
                neighbour = rows[rest - 1] if newest else rows[rest]
                assert content + len(neighbour.content) > READ_BYTES // 2
            got += len(found)
            low, high = (low, high - len(found)) if newest else (low + len(found), high)
        assert got == len(rows)


@everywhere
async def test_what_made_no_message_is_known_until_it_is_forgotten(
    reopen: Opener, settle: Any, where: str
) -> None:
    store = await reopen()
    assert store.unstored(3) == []
    many = [2**62 + number for number in range(3000)]
    for offset, ids in ((3, [7, 9]), (4, []), (300, many), (70_000, [11])):
        made = changes(users={"a": User(offset)})
        made.unstored += ids
        store.apply(offset, made)
    store = await settle(store, where)
    assert [store.unstored(offset) for offset in (2, 3, 4, 300, 70_000)] == [[], [7, 9], [], many, [11]]
    assert await store.sync() == 70_000
    store.forget(300)
    store.forget(299)
    store = await reopen()
    assert [store.unstored(offset) for offset in (3, 300, 70_000)] == [[], [], [11]]
    store.forget(70_000)
    store.forget(80_000)
    assert store.unstored(70_000) == []
    for offset in range(80_001, 83_001):  # however many, and also of a batch that is noted after a call
        made = changes()
        made.unstored.append(offset)
        store.apply(offset, made)
    await store.sync()
    store.forget(82_999)
    assert [store.unstored(offset) for offset in range(80_001, 83_001)] == [[]] * 2999 + [[83_000]]


async def test_an_empty_batch_moves_the_offset(reopen: Opener) -> None:
    """A batch of rejected records changes nothing, but it has been folded."""
    store = await reopen()
    store.apply(3, changes(message("#team", 1)))
    store.apply(9, Changes())
    assert store.offset == 9
    assert await store.sync() == 9
    store = await reopen()
    assert store.offset == 9


async def test_sync_returns_an_offset_that_is_there_after_reopening(reopen: Opener) -> None:
    store = await reopen()
    for offset in range(1, 40):
        store.apply(offset, changes(message("#team", offset)))
        if offset % 13 == 0:
            assert await store.sync() == offset
    asked = asyncio.create_task(store.sync())
    await asyncio.sleep(0)
    store.apply(40, changes(message("#team", 40)))  # while it is under way
    assert 39 <= await asked <= 40
    store = await reopen()
    assert store.offset == 40
    assert len(store.messages("#team", 1, 100, 100)) == 40


async def test_close_writes_everything_down_and_may_be_called_again(reopen: Opener) -> None:
    store = await reopen()
    store.apply(5, changes(message("#team", 1), users={"alice": User(1)}))
    await asyncio.gather(store.close(), store.close())
    await store.close()
    store = await reopen()
    assert store.offset == 5
    assert store.user("alice") == User(1)
    assert store.messages("#team", 1, 1, 1) == [message("#team", 1)]


async def test_close_while_a_sync_is_under_way(reopen: Opener) -> None:
    store = await reopen()
    for turns in range(6):
        store.apply(store.offset + 1, changes(message("#team", turns + 1)))
        asked = asyncio.create_task(store.sync())
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.close()
        assert await asked == store.offset
        store = await reopen()
        assert store.offset == turns + 1


async def test_many_conversations_come_back_through_a_small_cache(reopen: Opener) -> None:
    store = await reopen()
    users, names = [f"u{n}" for n in range(9)], [f"#{n}" for n in range(9)]
    model = MemoryStore()
    for offset in range(1, 60):
        name, user = names[offset * 7 % 9], users[offset * 5 % 9]
        of = model.conversation(name)
        seq = of.last_seq + 1 if of is not None else 1
        batch = changes(
            message(name, seq, f"k{offset % 4}", user), users={user: User(offset)},
            memberships={(user, name): Membership(1, offset, 1) if offset % 3 else None},
        )  # fmt: skip
        for store_ in (store, model):
            store_.apply(offset, batch)
    keys = ["k0", "k1", "k2", "k3", "k4"]
    expected = everything(model, users, names, keys)
    assert everything(store, users, names, keys) == expected
    await store.sync()
    assert everything(store, users, names, keys) == expected
    assert everything(await reopen(), users, names, keys) == expected


async def test_a_name_that_no_conversation_has_is_none(reopen: Opener) -> None:
    store = await reopen()
    for name in ("", "|", "#", "ü", "\ud800"):
        assert store.conversation(name) is None
