"""The engine as its gateway sees it, over a journal in memory that can be told to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from hongyan.config import Settings
from hongyan.engine.committer import ANSWER_MS, BATCH_RETRIES, RECORD_OVERHEAD
from hongyan.engine.cursors import MAX_ENTRIES
from hongyan.engine.engine import Engine
from hongyan.engine.presence import PUSHES, Presence
from hongyan.engine.reads import TURN_MS
from hongyan.engine.sessions import Session, Sessions
from hongyan.errors import DataDirectoryError, Refused, Unavailable, WireError
from hongyan.ids import Snowflake
from hongyan.journal.base import Entry
from hongyan.link.base import PresenceState, Resumed, Told
from hongyan.metrics import Counters
from hongyan.protocol.names import direct_key
from hongyan.protocol.outcomes import Duplicate, GroupChanged, Outcome, Rejected
from hongyan.protocol.records import Acked, Cursors, Record, Register, Send
from hongyan.protocol.state import Membership, Message, User
from memory_store import MemoryStore


class MemoryJournal:
    """Keeps entries; `gate` holds an append back, `failing` makes it refuse like a full disk."""

    identity = "memory"

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = False
        self.appending = asyncio.Event()

    @property
    def last(self) -> int:
        return self.entries[-1].last if self.entries else 0

    @property
    def first(self) -> int:
        return self.entries[0].first if self.entries else self.last + 1

    async def append(self, records: Sequence[Record], log_ms: int) -> Entry:
        self.appending.set()
        await self.gate.wait()
        if self.failing:
            raise Unavailable("full")
        self.entries.append(Entry(self.last + 1, log_ms, list(records)))
        return self.entries[-1]

    def read(self, after: int) -> Iterator[Entry]:
        return iter([entry for entry in self.entries if entry.last > after])

    async def trim(self, upto: int) -> None:
        self.entries = [entry for entry in self.entries[:-1] if entry.last > upto] + self.entries[-1:]

    async def close(self) -> None:
        pass


class Gateway:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.refused: list[tuple[str, WireError]] = []
        self.replaced: list[int] = []
        self.states: list[tuple[int, dict[str, PresenceState]]] = []
        self.news = asyncio.Event()

    def tell(self, told: Iterable[Told], first: int = 0) -> None:
        self.told += told
        self.news.set()

    def refuse(self, sends: Sequence[tuple[int, str]], error: WireError) -> None:
        self.refused += [(ref, error) for _, ref in sends]
        self.news.set()

    def replace(self, session: int) -> None:
        self.replaced.append(session)

    def presence(self, sessions: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        self.states += [(session, dict(states)) for session in sessions]
        self.news.set()

    async def outcomes(self, count: int) -> list[Outcome]:
        async with asyncio.timeout(10):
            while len(sent := [outcome for session, _, outcome in self.told if session]) < count:
                self.news.clear()
                await self.news.wait()
        return sent


async def write_rows(world: World) -> None:
    """What has been acknowledged moves its rows."""
    await world.engine._cursors.note()
    world.clock.ms += world.settings.cursor_flush_interval_ms
    await world.engine._cursors.move()


class Clock:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms


class World:
    def __init__(self, **settings: object) -> None:
        self.clock, self.journal, self.store, self.gateway = (
            Clock(),
            MemoryJournal(),
            MemoryStore(),
            Gateway(),
        )
        self.skew = 0  # ms that the wall clock is off the monotonic one
        self.failures: list[BaseException] = []
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.counters = Counters()
        self.snowflake = Snowflake(1, self.clock)
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        return Engine(
            self.settings, self.journal, self.store, self.snowflake, self.counters,
            now_ms=lambda: self.clock.ms + self.skew, monotonic_ms=self.clock, fatal=self.failures.append,
        )  # fmt: skip

    def send(self, session: int, to: str, key: str, retry: bool = False) -> None:
        self.engine.send(session, key, to, "text", b'"x"', retry)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World(
        presence_offline_delay_ms=5000, max_devices_online=2, max_devices=3, membership_changes_per_minute=3
    )  # fmt: skip
    await world.engine.recover()
    world.engine.start(world.gateway)
    await world.engine.login(1, "alice", "a1", "")
    await world.engine.login(2, "bob", "b1", "")
    yield world
    world.journal.gate.set()
    world.journal.failing = False
    await world.engine.close()
    assert world.failures == []


async def test_nothing_is_told_before_the_journal_returns(world: World) -> None:
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.send(1, "@bob", "one")
    await world.journal.appending.wait()
    world.send(1, "@bob", "two")
    world.send(2, "@alice", "three")
    assert [session for session, _, _ in world.gateway.told if session] == []
    world.journal.gate.set()
    sent = await world.gateway.outcomes(3)
    assert [outcome.key for outcome in sent if isinstance(outcome, Message)] == ["one", "two", "three"]
    assert [outcome.seq for outcome in sent if isinstance(outcome, Message)] == [1, 2, 3]
    sends = [entry for entry in world.journal.entries if type(entry.records[0]).__name__ == "Send"]
    assert [len(entry.records) for entry in sends] == [1, 2], "the second and third shared one commit"
    assert world.counters.ack_seconds.buckets()[-1] == ("+Inf", 3)
    assert world.counters.journal_append_seconds.buckets()[-1][1] == world.counters.batches


async def test_without_new_ids_sends_are_unavailable_and_nothing_else_breaks() -> None:
    world = World()
    world.snowflake = Snowflake(1, world.clock, mark_ms=world.clock.ms + 1)
    world.engine = world.new_engine()
    await world.engine.recover()
    world.engine.start(world.gateway)
    await world.engine.login(1, "alice", "a1", "")
    with pytest.raises(Refused):
        while True:
            world.snowflake.next()
    with pytest.raises(Refused, match="unavailable"):
        world.send(1, "@bob", "one")
    with pytest.raises(Refused, match="unavailable"):
        await world.engine.join_group(1, "#x")
    world.engine.ack(1, "@alice", 0)
    world.engine.logout(1)  # its last-seen time is to be written, and waits
    with pytest.raises(Refused):
        await world.engine._cursors.note()
    assert world.engine._cursors._seen
    await world.engine.login(2, "alice", "a1", "")
    world.clock.ms += 1
    world.snowflake.extend(world.snowflake.to_reserve())
    await world.engine.close()
    assert not world.engine._cursors._seen
    assert world.failures == []


@pytest.mark.parametrize("command", ["join", "create"])
async def test_a_member_who_joins_again_is_told_no_seq_below_what_was_pushed(
    world: World, command: str
) -> None:
    created = await world.engine.create_group(1, "#g", "", "open")
    assert created["seq"] == 0
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.send(1, "@bob", "first")
    await world.journal.appending.wait()
    again = (
        world.engine.join_group(1, "#g")
        if command == "join"
        else world.engine.create_group(1, "#g", "", "open")
    )
    asking = asyncio.create_task(again)
    await asyncio.sleep(0)
    world.send(1, "#g", "in the same batch")
    world.journal.gate.set()
    assert (await asking)["seq"] == 1


async def test_a_full_disk_refuses_and_service_resumes(world: World) -> None:
    world.journal.failing = True
    world.gateway.news.clear()
    world.send(1, "@bob", "k")
    async with asyncio.timeout(10):
        await world.gateway.news.wait()
    assert [(ref, error.code) for ref, error in world.gateway.refused] == [("k", "unavailable")]
    with pytest.raises(Refused) as refusal:
        await world.engine.create_group(1, "#g", "", "open")
    assert refusal.value.error.code == "unavailable"
    world.journal.failing = False
    world.send(1, "@bob", "k", retry=True)
    (outcome,) = await world.gateway.outcomes(1)
    assert isinstance(outcome, Message) and outcome.seq == 1


async def test_what_was_sent_before_the_windows_figures_is_found_again_after_a_restart() -> None:
    """A first start on a full disk states them only later; its journal was never trimmed all the same."""
    world = World()
    await world.engine.recover()
    world.journal.failing = True
    with capture_logs() as logged:
        await world.engine.open_window()
    assert [(each["log_level"], each["error"]) for each in logged] == [("warning", "full")]
    world.journal.failing = False
    world.engine.start(world.gateway)
    await world.engine.login(1, "alice", "a1", "")
    world.send(1, "@alice", "k")
    await world.gateway.outcomes(1)
    await world.engine.close()
    world.engine = world.new_engine()
    await world.engine.recover()
    await world.engine.open_window()
    world.engine.start(world.gateway)
    await world.engine.login(1, "alice", "a1", "")
    world.send(1, "@alice", "k")
    again = (await world.gateway.outcomes(2))[1]
    await world.engine.close()
    assert isinstance(again, Duplicate)


async def test_a_send_whose_commit_hangs_is_answered_unavailable_once(world: World) -> None:
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.send(1, "@bob", "k")
    await world.journal.appending.wait()
    world.gateway.news.clear()
    world.clock.ms += 9_500
    async with asyncio.timeout(10):
        await world.gateway.news.wait()
    assert [ref for ref, _ in world.gateway.refused] == ["k"]
    world.journal.gate.set()
    world.send(1, "@bob", "k", retry=True)
    (outcome,) = await world.gateway.outcomes(1)
    assert isinstance(outcome, Duplicate), "it was kept after all, and is acknowledged once"


async def test_sends_that_are_told_unavailable_before_their_turn_are_not_journaled(world: World) -> None:
    committer, before = world.engine._committer, len(world.journal.entries)
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.send(1, "@bob", "flying")
    await world.journal.appending.wait()
    world.send(1, "@bob", "one")
    users = [asyncio.create_task(world.engine.register("carol", "hash"))]
    await asyncio.sleep(0)
    world.send(1, "@bob", "two", retry=True)
    users.append(asyncio.create_task(world.engine.register("alice", "hash")))
    await asyncio.sleep(0)
    world.send(2, "@alice", "three")
    world.clock.ms += ANSWER_MS + 1
    committer.expire()
    assert [ref for ref, _ in world.gateway.refused] == ["flying", "one", "two", "three"]
    assert committer.pending_bytes == 3 * RECORD_OVERHEAD + len(b'"x"'), "one that flies, and two commands"
    world.send(1, "@bob", "one", retry=True)
    world.journal.gate.set()
    (outcome,) = await world.gateway.outcomes(1)
    assert isinstance(outcome, Message) and (outcome.key, outcome.seq) == ("one", 2)
    done = await asyncio.gather(*users, return_exceptions=True)
    assert [type(each) for each in done] == [type(None), Refused], "each has its own outcome"
    assert world.store.users["carol"].password == "hash"
    journaled = [[type(each) for each in entry.records] for entry in world.journal.entries[before:]]
    assert journaled == [[Send], [Register, Register], [Send]]
    assert committer.pending_bytes == 0


async def test_a_batch_of_nothing_but_dropped_sends_is_not_committed() -> None:
    world = World()
    await world.engine.recover()
    world.engine.start(world.gateway)
    await world.engine.login(1, "alice", "a1", "")
    before = len(world.journal.entries)
    world.send(1, "@alice", "k")
    await asyncio.sleep(0)  # the committer gathers what comes with it
    world.clock.ms += ANSWER_MS + 1
    world.engine._committer.expire()
    async with asyncio.timeout(10):
        await world.engine._committer.drain()
    assert [ref for ref, _ in world.gateway.refused] == ["k"]
    assert len(world.journal.entries) == before
    assert world.engine.pending_bytes == 0
    world.send(1, "@alice", "k", retry=True)
    await world.gateway.outcomes(1)
    await world.engine.close()
    assert world.failures == []


async def test_what_is_given_up_while_a_batch_gathers_leaves_nothing_to_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.send(1, "@bob", "flying")
    await world.journal.appending.wait()
    world.send(1, "@bob", "a")
    world.clock.ms += ANSWER_MS + 1
    committer, tell = world.engine._committer, world.gateway.tell

    def told(*args: Any) -> None:
        tell(*args)
        asyncio.get_running_loop().call_soon(committer.expire)  # the next batch gathers

    monkeypatch.setattr(world.gateway, "tell", told)
    world.journal.gate.set()
    async with asyncio.timeout(10):
        await committer.drain()
    assert [ref for ref, _ in world.gateway.refused] == ["a"]
    world.send(1, "@bob", "next")
    async with asyncio.timeout(10):
        await committer.drain()
    assert [message.key for message in world.store.log["alice|bob"]] == ["flying", "next"]


async def test_a_batch_has_a_bounded_number_of_sends_to_look_up(world: World) -> None:
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.send(1, "@bob", "first")
    await world.journal.appending.wait()
    for n in range(3 * BATCH_RETRIES):
        world.send(1, "@bob", f"k{n}", retry=True)
    appended = len(world.journal.entries)
    world.journal.gate.set()
    await world.engine._committer.drain()
    sizes = [len(entry.records) for entry in world.journal.entries[appended:]]
    assert sum(sizes) >= 3 * BATCH_RETRIES
    assert max(sizes) == BATCH_RETRIES


async def test_a_send_is_answered_in_time_also_while_cursors_wait_for_the_disk(world: World) -> None:
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.engine.ack(1, "@bob", 1)
    await world.journal.appending.wait()  # the ticker's cursors are stuck in the journal
    world.send(1, "@bob", "late")
    world.gateway.news.clear()
    world.clock.ms += 9_500
    async with asyncio.timeout(5):
        await world.gateway.news.wait()
    assert [(ref, error.code) for ref, error in world.gateway.refused] == [("late", "unavailable")]


async def test_a_full_tail_says_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: what is refused is not looked up before."""
    monkeypatch.setattr(world.store, "find", None)
    world.store.full = True
    for retry in (False, True):
        with pytest.raises(Refused) as refusal:
            world.engine.send(1, "k", "@bob", "text", b'"x"', retry)
        assert refusal.value.error.code == "busy"
    assert world.engine.writable  # a moment's `busy` takes no server out of its balancer
    world.store.refusing = True
    assert not world.engine.writable
    world.store.full = world.store.refusing = False


async def test_what_the_store_notes_of_refused_sends_goes_with_the_journals_rows() -> None:
    world = World(dedup_window_ms=0)
    await world.engine.recover()
    world.engine.start(world.gateway)
    await world.engine.login(1, "alice", "d", "")
    for number, key in enumerate("kl", 1):
        world.send(1, "@nobody", key)
        await world.gateway.outcomes(number)
    refused_at = max(world.store.without)
    assert [len(ids) for ids in world.store.without.values()] == [1, 1]
    for _ in range(3):
        world.clock.ms += 1000
        await world.engine._checkpoint()
    assert world.journal.first > refused_at
    assert world.store.without == {}
    await world.engine.close()
    assert world.failures == []


async def test_devices_replace_and_are_limited(world: World) -> None:
    await world.engine.login(3, "alice", "a2", "")
    with pytest.raises(Refused) as refusal:
        await world.engine.login(4, "alice", "a3", "")
    assert refusal.value.error.code == "limit_exceeded"
    await world.engine.login(5, "alice", "a1", "")
    assert world.gateway.replaced == [1]
    world.engine.logout(1)
    world.send(5, "@bob", "k")
    await world.gateway.outcomes(1)


async def test_a_drop_looks_at_no_other_login(world: World) -> None:
    """Ten thousand that drop while a slow disk keeps their logins waiting walked each other's."""

    class NotWalked(dict[str, dict[int, str]]):
        def __iter__(self) -> NoReturn:
            raise AssertionError("walked")

        values = items = keys = __iter__  # type: ignore[assignment]

    world.engine._logins._logging_in = NotWalked()
    world.journal.gate.clear()
    logins = [asyncio.create_task(world.engine.login(10 + n, f"u{n}", "d", "")) for n in range(20)]
    await asyncio.sleep(0)
    for n in range(20):
        world.engine.logout(10 + n)
    assert len(world.engine._logins._logging_in) == 0
    world.engine.logout(99)
    world.journal.gate.set()
    for login in logins:
        with pytest.raises(Refused, match="gone"):
            await login


async def test_racing_logins_of_new_devices_do_not_pass_the_limit(world: World) -> None:
    logins = [world.engine.login(10 + n, "carol", f"c{n}", "") for n in range(4)]
    results = await asyncio.gather(*logins, return_exceptions=True)
    assert sum(isinstance(result, Refused) for result in results) == 2


async def test_an_ack_holds_at_once_and_survives_a_restart(world: World) -> None:
    for n in range(3):
        world.send(2, "@alice", str(n))
    await world.gateway.outcomes(3)
    for address, seq in {
        "@bob": 2,
        "#foreign": 9,
        "@nobody": 1,
        "": 3,
        "bob": 3,
        "@b b": 1,
        "@\ud800": 1,
    }.items():
        world.engine.ack(1, address, seq)
    page = await world.engine.sync(1, 50, {}, None)
    assert [item.message.seq for item in page.items] == [3]
    world.engine.logout(1)
    await world.engine.close()
    world.engine = world.new_engine()
    await world.engine.recover()
    world.engine.start(world.gateway)
    await world.engine.login(7, "alice", "a1", "")
    page = await world.engine.sync(7, 50, {}, None)
    assert [item.message.seq for item in page.items] == [3]
    await world.engine.login(8, "alice", "new", "")
    page = await world.engine.sync(8, 50, {}, None)
    assert [item.message.seq for item in page.items] == [3], "a new device starts where the furthest stands"


async def test_a_new_session_inherits_unwritten_acks(world: World) -> None:
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)
    world.engine.ack(1, "@bob", 1)
    world.engine.logout(1)
    await world.engine.login(9, "alice", "a1", "")
    assert (await world.engine.sync(9, 50, {}, None)).items == []


async def test_acks_refused_while_more_are_written_are_kept(world: World) -> None:
    world.send(2, "@alice", "k")
    world.send(1, "@alice", "k")
    await world.gateway.outcomes(2)
    queue = world.engine._cursors
    world.journal.gate.clear()
    world.engine.ack(1, "@bob", 1)
    first = asyncio.create_task(queue.note())
    await asyncio.sleep(0)
    world.engine.ack(1, "@alice", 1)
    second = asyncio.create_task(queue.flush_user("alice", ["a1"]))
    await asyncio.sleep(0)
    assert (await world.engine.sync(1, 50, {}, None)).items == [], "both writes under way, nothing forgotten"
    world.journal.failing = True
    world.journal.gate.set()
    _, refusal = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(refusal, Refused), "a first login that rests on these must not go on"
    assert (await world.engine.sync(1, 50, {}, None)).items == [], "a full disk forgets no acknowledgement"
    world.journal.failing = False
    await write_rows(world)
    number = world.store.users["alice"].devices["a1"].number
    for key in ("alice|bob", "alice|alice"):
        assert world.store.rows["alice", key].cursors == {number: 1}


async def test_a_replaced_connection_hands_over_what_it_had_read(world: World) -> None:
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)

    def replace(session: int) -> None:
        world.engine.ack(session, "@bob", 1)
        world.engine.logout(session)

    world.gateway.replace = replace  # type: ignore[method-assign]
    await world.engine.login(9, "alice", "a1", "")
    assert await synced(world, 9) == []
    world.clock.ms += 6_000
    assert (await world.engine.presence(2, ["@alice"], None))["@alice"].online


async def test_reads_of_many_together_have_a_share_of_each_turn_of_the_loop(world: World) -> None:
    """In order of arrival; and who has gone while it waited costs nothing."""
    loop, memberships = asyncio.get_running_loop(), world.store.memberships
    turns = [0]  # how often reads went on, for each turn of the loop

    def turn() -> None:
        nonlocal next_turn
        turns.append(0)
        next_turn = loop.call_soon(turn)

    def slow(*args: Any) -> Any:
        turns[-1] += 1
        world.clock.ms += TURN_MS
        return memberships(*args)

    world.store.memberships = slow  # type: ignore[method-assign]
    for n in range(3):
        await world.engine.create_group(1, f"#g{n}", "", "open")
    next_turn = loop.call_soon(turn)
    done: list[int] = []
    reads = []
    for n in range(60):
        reads.append(loop.create_task(world.engine.conversations(2, 10, None)))
        reads[-1].add_done_callback(lambda _, n=n: done.append(n))
    late = loop.create_task(world.engine.conversations(1, 10, None))
    for _ in range(3):
        await asyncio.sleep(0)
    world.engine.logout(1)
    await asyncio.wait(reads)
    next_turn.cancel()
    assert max(turns) <= 4, "before any has been measured"
    assert max(turns[20:]) == 1, "each takes all that there is"
    assert done == sorted(done)
    with pytest.raises(Refused, match="not logged in"):
        await late


async def test_presence_waits_before_it_says_offline(world: World) -> None:
    states = await world.engine.presence(1, ["@bob", "@nobody"], True)
    assert states == {"@bob": PresenceState(True, None), "@nobody": PresenceState(False, None)}
    gone_at = world.clock.ms
    world.engine.logout(2)
    await world.engine.login(3, "bob", "b1", "")
    assert world.gateway.states == [], "a reconnect shows nobody a flicker"
    world.engine.logout(3)
    assert (await world.engine.presence(1, ["@bob"], None))["@bob"].online
    await world.engine._cursors.note()  # ten times a second
    world.gateway.news.clear()
    world.clock.ms += 5_001
    async with asyncio.timeout(10):
        await world.gateway.news.wait()
    assert world.gateway.states == [(1, {"@bob": PresenceState(False, gone_at)})]
    assert (await world.engine.presence(1, ["@bob"], False))["@bob"].last_seen == gone_at


async def test_groups_through_the_engine(world: World) -> None:
    made = await world.engine.create_group(1, None, "Team", "open")
    group = made["group"]
    assert made | {"group": "#g"} == {
        "group": "#g", "name": "Team", "join": "open", "owner": "alice", "members": 1, "seq": 0, "first_seq": 1,
    }  # fmt: skip
    world.send(1, group, "k")
    await world.gateway.outcomes(1)
    joined = await world.engine.join_group(2, group)
    assert joined == {"group": group, "seq": 1, "first_seq": 2, "members": 2}
    assert list(world.engine.groups("bob")) == [group]
    await world.engine.leave_group(2, group)
    await world.engine.join_group(2, group)
    with pytest.raises(Refused) as refusal:
        await world.engine.leave_group(2, group)
    assert refusal.value.error.code == "rate_limited"
    assert world.counters.limit_hits == {"membership_changes_per_minute": 1}
    assert (refusal.value.error.retry_after_ms or 0) > 0
    events = [outcome.events for _, _, outcome in world.gateway.told if isinstance(outcome, GroupChanged)]
    assert events[:2] == [(("joined", "alice"),), (("joined", "bob"),)]


async def test_refusals_of_the_fold_reach_their_sender(world: World) -> None:
    world.send(1, "@nobody", "k")
    (outcome,) = await world.gateway.outcomes(1)
    assert isinstance(outcome, Rejected) and outcome.code == "unknown_user"


async def test_a_store_ahead_of_its_journal_is_refused(world: World) -> None:
    await world.engine.close()
    world.journal.entries.clear()
    with pytest.raises(DataDirectoryError, match="ahead of the journal"):
        await world.new_engine().recover()


async def test_a_send_behind_a_slow_batch_waits_no_longer_than_the_first(world: World) -> None:
    world.journal.gate.clear()
    world.journal.appending.clear()
    world.send(1, "@bob", "flying")
    await world.journal.appending.wait()
    world.send(1, "@bob", "waiting")
    world.clock.ms += 6_000
    world.skew = -3_600_000  # the wall clock steps back
    world.journal.appending.clear()
    world.journal.gate.set()
    await world.gateway.outcomes(1)
    world.journal.gate.clear()
    await world.journal.appending.wait()  # now the second flies, 0 s; and it has waited since it came
    world.gateway.news.clear()
    world.clock.ms += 3_100
    async with asyncio.timeout(10):
        await world.gateway.news.wait()
    assert [(ref, error.code) for ref, error in world.gateway.refused] == [("waiting", "unavailable")]


async def test_acks_refused_after_the_device_came_anew_are_written_with_its_next(world: World) -> None:
    world.send(2, "@alice", "k")
    world.send(1, "@alice", "k")
    await world.gateway.outcomes(2)
    queue = world.engine._cursors
    world.journal.gate.clear()
    world.engine.ack(1, "@bob", 1)
    writing = asyncio.create_task(queue.note())
    await asyncio.sleep(0)
    world.engine.logout(1)
    await world.engine.login(9, "alice", "a1", "")
    world.journal.failing = True
    world.journal.gate.set()
    with pytest.raises(Refused):
        await writing
    world.engine.ack(9, "@alice", 1)
    world.journal.failing = False
    await write_rows(world)
    number = world.store.users["alice"].devices["a1"].number
    for key in ("alice|bob", "alice|alice"):
        assert world.store.rows["alice", key].cursors == {number: 1}


async def test_a_cancelled_cursor_write_keeps_what_it_had(world: World) -> None:
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)
    queue = world.engine._cursors
    await write_rows(world)
    world.journal.gate.clear()
    world.engine.ack(1, "@bob", 1)
    used = world.clock.ms + 7
    queue.seen("alice", "a1", used)
    holder = asyncio.create_task(queue.note())
    waiter = asyncio.create_task(queue.note())
    await asyncio.sleep(0)
    for task in (waiter, holder):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    world.journal.gate.set()
    await write_rows(world)
    device = world.store.users["alice"].devices["a1"]
    assert device.last_used == used
    assert world.store.rows["alice", "alice|bob"].cursors == {device.number: 1}


async def test_cursor_records_are_bounded(world: World) -> None:
    queue = world.engine._cursors
    queue.of(("alice", "a1")).update({f"#{n}": 1 for n in range(MAX_ENTRIES * 2 + 1)})
    for n in range(MAX_ENTRIES + 1):
        queue.seen(f"u{n}", "d", 1)
    await queue.note(all_seen=True)
    await write_rows(world)
    written = [r for entry in world.journal.entries for r in entry.records if isinstance(r, Cursors)]
    acked = [sum(len(of) for _, _, of in record.acks) for record in written]
    assert max(acked + [len(record.seen) for record in written]) == MAX_ENTRIES
    assert sum(acked) == MAX_ENTRIES * 2 + 1
    assert sum(len(record.seen) for record in written) >= MAX_ENTRIES + 1
    assert queue.size == 0


async def test_a_follower_that_is_closed_by_the_push_hurts_nobody(world: World) -> None:
    await world.engine.login(3, "carol", "c1", "")
    for session in (1, 3):
        await world.engine.presence(session, ["@dave"], True)
    told: list[int] = []

    def push(sessions: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        told.extend(sessions)
        for session in sessions:
            world.engine.logout(session)

    world.engine._presence.push = push
    await world.engine.login(4, "dave", "d1", "")
    assert sorted(told) == [1, 3]


def test_presence_of_many_is_told_a_part_at_a_time() -> None:
    sessions = Sessions()
    watched = Presence(sessions, MemoryStore(), visibility="all", delay_ms=0, max_subscriptions=10)
    told: list[tuple[int, dict[str, PresenceState]]] = []
    largest = 0

    def push(to: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        nonlocal largest
        largest = max(largest, len(to))
        told.extend((session, dict(states)) for session in to)

    watched.push = push
    followers = [Session(number, f"f{number}", "d", 1, "") for number in range(PUSHES + 500)]
    for follower in followers:
        watched.ask(follower, ["@star", "@other"], True)
    for user in ("star", "other"):
        watched.went(user, 0, 7)
    watched.tick(1)
    assert len(told) == PUSHES
    watched.forget(followers[-1])
    watched.came("star")  # before all have heard that it went: they hear the last
    watched.tick(1)
    assert PUSHES < len(told) <= 2 * PUSHES
    while watched._changes or watched._leaving:
        watched.tick(1)
    last = {(session, user): state for session, states in told for user, state in states.items()}
    assert largest == PUSHES
    for follower in followers[:-1]:
        assert last[follower.number, "@star"].online
        assert last[follower.number, "@other"] == PresenceState(False, 7)
    assert (followers[-1].number, "@other") not in last


def test_of_many_who_leave_together_a_tick_takes_a_part() -> None:
    watched = Presence(Sessions(), MemoryStore(), visibility="all", delay_ms=0, max_subscriptions=5000)
    told: list[str] = []
    watched.push = lambda sessions, states: told.extend(states)
    names = [f"u{n}" for n in range(4000)]
    watched.ask(Session(1, "f", "d", 1, ""), [f"@{name}" for name in names], True)
    for name in names:
        watched.went(name, 0, 7)
    before = 0
    while watched._leaving or watched._changes:
        watched.tick(1)
        assert before < len(told) <= before + PUSHES
        assert len(told) + len(watched._changes) <= before + PUSHES, "collected, and not told"
        before = len(told)
    assert sorted(told) == sorted(f"@{name}" for name in names)


def test_a_damaged_row_of_one_follower_costs_the_others_no_news() -> None:
    """Nor the process, which a failure of storage would end: presence is asked of the store, but is none of it."""
    store = MemoryStore()
    watched = Presence(Sessions(), store, visibility="contacts", delay_ms=0, max_subscriptions=10)
    told: list[int] = []
    watched.push = lambda sessions, states: told.extend(sessions)
    for number, follower in enumerate(("f1", "f2", "f3")):
        store.rows[follower, direct_key(follower, "star")] = Membership(1, 1, 1)
        watched.ask(Session(number, follower, "d", 1, ""), ["@star"], True)
    membership = store.membership

    def damaged(user: str, key: str) -> Membership | None:
        if user == "f2":
            raise DataDirectoryError("a block is damaged")
        return membership(user, key)

    store.membership = damaged  # type: ignore[method-assign]
    watched.went("star", 0, 7)
    watched.tick(1)
    assert sorted(told) == [0, 2]


def test_a_damaged_row_costs_one_resumed_session_its_news() -> None:
    store, sessions = MemoryStore(), Sessions()
    watched = Presence(sessions, store, visibility="all", delay_ms=0, max_subscriptions=10)
    told: list[int] = []
    watched.push = lambda to, states: told.extend(to)
    for number, followed in enumerate(("star", "damaged", "star"), 1):
        session = Session(number, f"f{number}", "d", 1, "")
        sessions.add(session)
        watched.resume(session, {followed: True}, 0)
    user = store.user

    def damaged(name: str) -> User | None:
        if name == "damaged":
            raise DataDirectoryError("a block is damaged")
        return user(name)

    store.user = damaged  # type: ignore[method-assign]
    watched.tick(1)
    assert told == [1, 3]


async def test_the_journal_is_trimmed_by_the_window_of_the_safe_offset(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store syncs, a batch comes that makes the window forget; a crash may still lose that batch."""
    world.send(1, "@bob", "old")
    await world.gateway.outcomes(1)
    held = world.store.offset
    synced = world.store.sync
    moment = world.settings.dedup_window_ms + 1

    async def sync() -> int:
        safe = await synced()
        world.clock.ms += moment
        world.send(1, "@bob", "new")
        await world.gateway.outcomes(2)
        return safe

    monkeypatch.setattr(world.store, "sync", sync)
    await world.engine._checkpoint()
    assert world.journal.first <= held, "a replay from there has to know the old message"


async def test_the_journal_keeps_what_was_acknowledged_until_rows_have_it() -> None:
    """Also with a window that needs nothing; and a start takes it in again."""
    world = World(dedup_window_ms=0)
    await world.engine.recover()
    world.engine.start(world.gateway)
    for session, user in ((1, "alice"), (2, "bob")):
        await world.engine.login(session, user, "d", "")
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)
    await (
        world.engine._checkpoint()
    )  # with the record of the window's figures that a trimmed journal begins with
    world.engine.ack(1, "@bob", 1)
    await world.engine._cursors.note()
    noted = world.journal.last
    for _ in range(3):
        world.clock.ms += 1000
        await world.engine._checkpoint()
    assert 1 < world.journal.first <= noted
    await world.engine.close()
    world.engine = world.new_engine()
    await world.engine.recover()
    world.engine.start(world.gateway)
    await world.engine.login(3, "alice", "d", "")
    assert await synced(world, 3) == []
    await write_rows(world)
    for _ in range(3):
        world.clock.ms += 1000
        await world.engine._checkpoint()
    assert world.journal.first > noted
    await world.engine.close()
    assert world.failures == []


async def test_acknowledgements_are_noted_while_others_are_told_busy(world: World) -> None:
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)
    world.store.full = True
    world.engine.ack(1, "@bob", 1)
    with pytest.raises(Refused, match="behind"):
        world.send(2, "@alice", "l")
    await world.engine._cursors.note()
    assert any(isinstance(record, Acked) for record in world.journal.entries[-1].records)
    world.store.full = False


async def test_a_refused_sync_trims_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send(1, "@bob", "old")
    await world.gateway.outcomes(1)
    first = world.journal.first
    world.clock.ms += world.settings.dedup_window_ms + 1
    world.send(1, "@bob", "new")
    await world.gateway.outcomes(2)

    async def sync() -> int:
        return 1

    monkeypatch.setattr(world.store, "sync", sync)
    await world.engine._checkpoint()
    assert world.journal.first == first


async def synced(world: World, session: int) -> list[int]:
    page = await world.engine.sync(session, 500, {}, None)
    return [item.message.seq for item in page.items]


async def test_a_device_online_for_weeks_is_not_the_one_unused_for_longest(world: World) -> None:
    world.send(2, "@alice", "k1")
    await world.gateway.outcomes(1)
    world.engine.ack(1, "@bob", 1)
    for n in range(4):
        world.clock.ms += 86_400_000
        await world.engine.login(10 + n, "alice", f"ci-{n}", "")
        world.engine.logout(10 + n)
    world.send(2, "@alice", "k2")
    await world.gateway.outcomes(2)
    world.engine.ack(1, "@bob", 2)
    world.engine.logout(1)
    for n in range(3, 6):
        world.send(2, "@alice", f"k{n}")
    await world.gateway.outcomes(5)
    await world.engine.login(20, "alice", "web", "")
    world.engine.ack(20, "@bob", 5)
    world.engine.logout(20)
    world.clock.ms += 60_000
    await world.engine.login(21, "alice", "a1", "")
    assert await synced(world, 21) == [3, 4, 5], "what came while it was away"


async def test_a_device_that_has_just_gone_was_in_use_until_now(world: World) -> None:
    """Its logout is not written yet when another device takes its place."""
    for device in ("old", "older"):
        world.clock.ms += 1000
        await world.engine.login(10, "alice", device, "")
        world.engine.logout(10)
    world.clock.ms += 1000
    world.engine.logout(1)
    await world.engine.login(11, "alice", "new", "")
    assert set(world.store.users["alice"].devices) == {"a1", "older", "new"}


async def test_a_device_that_goes_while_another_logs_in_is_kept(world: World) -> None:
    for device in ("old", "older"):
        world.clock.ms += 1000
        await world.engine.login(10, "alice", device, "")
        world.engine.logout(10)
    world.journal.gate.clear()
    login = asyncio.create_task(world.engine.login(11, "alice", "new", ""))
    await asyncio.sleep(0)
    world.engine.logout(1)
    world.journal.gate.set()
    await login
    assert set(world.store.users["alice"].devices) == {"a1", "older", "new"}


async def test_a_device_that_comes_back_while_it_is_being_forgotten_is_new(world: World) -> None:
    """Not online with a number that no row knows: what it acknowledged would be thrown away."""
    world.engine.logout(1)
    for device in ("old", "older"):
        world.clock.ms += 1000
        await world.engine.login(10, "alice", device, "")
        world.engine.logout(10)
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)
    await write_rows(world)
    world.journal.appending.clear()
    world.journal.gate.clear()
    first = asyncio.create_task(world.engine.login(11, "alice", "new", ""))
    await world.journal.appending.wait()
    back = asyncio.create_task(world.engine.login(12, "alice", "a1", ""))
    await asyncio.sleep(0)
    world.journal.gate.set()
    await asyncio.gather(first, back)
    session = world.engine._sessions.by_number[12]
    assert world.store.users["alice"].devices["a1"].number == session.device_number
    world.engine.ack(12, "@bob", 1)
    assert await synced(world, 12) == []


async def test_a_first_login_rests_on_acknowledgements_that_are_written(world: World) -> None:
    world.send(2, "@alice", "k")
    await world.gateway.outcomes(1)
    world.engine.ack(1, "@bob", 1)
    world.journal.failing = True
    with pytest.raises(Refused) as refusal:
        await world.engine.login(10, "alice", "new", "")
    assert refusal.value.error.code == "unavailable"
    world.journal.failing = False
    await world.engine.login(10, "alice", "new", "")
    assert await synced(world, 10) == []
    assert world.engine._logins._undecided == {}


async def test_a_device_that_comes_back_before_another_is_admitted_keeps_its_place(world: World) -> None:
    world.engine.logout(1)
    for device in ("old", "older"):
        world.clock.ms += 1000
        await world.engine.login(10, "alice", device, "")
        world.engine.logout(10)
    number = world.store.users["alice"].devices["a1"].number
    world.journal.appending.clear()
    world.journal.gate.clear()
    first = asyncio.create_task(world.engine.login(11, "alice", "new", ""))
    await world.journal.appending.wait()  # when the others were used is being written, for its sake
    back = asyncio.create_task(world.engine.login(12, "alice", "a1", ""))
    await asyncio.sleep(0)
    world.journal.gate.set()
    await asyncio.gather(first, back)
    assert world.store.users["alice"].devices["a1"].number == number


async def test_a_session_of_an_engine_before_goes_on_without_a_word(world: World) -> None:
    """bob's presence is followed from then; that carol did not come back is told once she had the time."""
    made = await world.engine.create_group(1, "#g", "", "open")
    for number, user in ((3, "carol"), (4, "dave")):
        await world.engine.login(number, user, "d", "")
    again = world.new_engine()
    await world.engine.close()
    world.engine = again
    await again.recover()
    again.start(world.gateway)
    world.gateway.states.clear()
    assert again.resume(Resumed(11, "alice", "a1", "5", {"bob": True, "carol": True}), False) == [
        made["group"]
    ]
    assert again.resume(Resumed(12, "bob", "b1", "6", {}), False) == []
    assert again.resume(Resumed(13, "dave", "forgotten", "7", {}), False) is None
    world.send(11, "@bob", "one")
    await world.gateway.outcomes(1)
    assert world.gateway.states == []
    world.clock.ms += 5_001
    async with asyncio.timeout(5):
        while not world.gateway.states:
            world.gateway.news.clear()
            await world.gateway.news.wait()
    ((session, states),) = world.gateway.states
    assert (session, list(states), states["@carol"].online) == (11, ["@carol"], False)


async def test_of_two_sessions_of_a_device_that_come_back_the_newer_stays(world: World) -> None:
    world.engine.logout(1)
    world.engine.resume(Resumed(21, "alice", "a1", "50", {}), True)
    assert world.engine.resume(Resumed(22, "alice", "a1", "40", {}), True) is None
    assert world.gateway.replaced == [22]
    assert world.engine.resume(Resumed(23, "alice", "a1", "60", {}), True) == []
    assert world.gateway.replaced == [22, 21]
