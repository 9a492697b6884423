"""Both ends of the link in one process: an engine and gateways that note what they hear, on a real Unix socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hongyan.errors import Refused, WireError, refused
from hongyan.link import messages, router, stream, uplink
from hongyan.link.base import Gap, HistoryPage, LoggedIn, PresenceState, Resumed, Told
from hongyan.link.listener import LinkListener
from hongyan.link.remote import RemoteEngine
from hongyan.link.router import SESSION_BITS, Router
from hongyan.link.uplink import Uplink
from hongyan.metrics import Counters
from hongyan.protocol.outcomes import Duplicate, GroupChanged, Rejected
from hongyan.protocol.records import Join, Send
from hongyan.protocol.state import Message, Sent

SECRET = b"s" * 32


class Engine:
    """Notes calls; answers logins with `groups`, questions when `gate` is open."""

    def __init__(self) -> None:
        self.offset = 7
        self.groups: list[str] = []
        self.calls: list[tuple[Any, ...]] = []
        self.news = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.logged_in: dict[int, tuple[str, str]] = {}
        self.gap: Gap | None = Gap((), (), ())
        self.refusal: Refused | None = None
        self.router: Router
        self.reads = self.most_reads = 0

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        self.news.set()

    async def until(self, *call: Any) -> None:
        async with asyncio.timeout(5):
            while call not in self.calls:
                self.news.clear()
                await self.news.wait()

    async def login(self, session: int, user: str, device: str, platform: str) -> LoggedIn:
        self._note("login", session)
        await self.gate.wait()
        for other, owner in list(self.logged_in.items()):
            if owner == (user, device):
                self.router.replace(other)
                del self.logged_in[other]
        self.logged_in[session] = user, device
        return LoggedIn(str(session), self.groups)

    def logout(self, session: int) -> None:
        self.logged_in.pop(session, None)
        self._note("logout", session)

    def send(self, session: int, ref: str, to: str, content_type: str, content: bytes, retry: bool) -> None:
        self._note("send", session, ref, retry)
        if self.refusal is not None:
            raise self.refusal

    def ack(self, session: int, address: str, seq: int) -> None:
        if session not in self.logged_in:
            raise refused("unauthenticated", "not logged in")
        self._note("ack", session, address, seq)

    async def join_group(self, session: int, group: str) -> dict[str, Any]:
        self._note("join", session)
        await self.gate.wait()
        return {"group": group}

    async def history(self, session: int, *arguments: Any) -> HistoryPage:
        self._note("history", session)
        self.reads += 1
        self.most_reads = max(self.most_reads, self.reads)
        await asyncio.sleep(0)
        self.reads -= 1
        return HistoryPage([], False)

    async def presence(self, session: int, users: Sequence[str], subscribe: bool) -> dict[str, PresenceState]:
        self._note("presence", session)
        return {f"@{user}": PresenceState(False, None) for user in users}

    async def leave_group(self, session: int, group: str) -> dict[str, Any]:
        raise RuntimeError("broken on purpose")

    def resume(self, resumed: Resumed, same: bool) -> Sequence[str] | None:
        self._note("resume", resumed.session, same)
        self.logged_in[resumed.session] = resumed.user, resumed.device
        return self.groups

    def gap_after(self, offset: int) -> Gap | None:
        self._note("gap", offset)
        return self.gap


class Gateway:
    """Notes what it is told, and (`heard`) everything in order."""

    def __init__(self, path: Path, number: int) -> None:
        self.told: list[Told] = []
        self.refused: list[tuple[int, str, str]] = []
        self.heard: list[tuple[Any, ...]] = []
        self.news = asyncio.Event()
        self.number = number
        self.link = Uplink(path, number, time.monotonic, lambda: {"pushes": number})
        self.link.gateway = self  # type: ignore[assignment]
        self.engine = RemoteEngine(self.link)

    def session(self, n: int) -> int:
        return self.number << SESSION_BITS | n

    def _hear(self, *what: Any) -> None:
        self.heard.append(what)
        self.news.set()

    async def until(self, *what: Any) -> None:
        async with asyncio.timeout(5):
            while what not in self.heard:
                self.news.clear()
                await self.news.wait()

    def tell(self, told: Iterable[Told], first: int = 0) -> None:
        for each in told:
            self.told.append(each)
            self._hear("told", each[0], type(each[2]).__name__)

    def refuse(self, sends: Sequence[tuple[int, str]], error: WireError) -> None:
        for session, ref in sends:
            self._hear("refused", session, ref, error.code)

    def replace(self, session: int) -> None:
        self.engine.ack(session, "@late", 9)  # read before
        self.engine.logout(session)
        self._hear("replaced", session)

    def presence(self, sessions: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        self._hear("presence", tuple(sessions))

    def carry(self, session: int, groups: Collection[str]) -> None:
        self._hear("carry", session, tuple(groups))

    def send_away(self, sessions: Collection[int] | None = None, topics: Collection[str] = ()) -> None:
        self._hear("away", tuple(sessions or ()), tuple(topics))

    def resync(self, topics: Collection[str]) -> None:
        self._hear("resync", tuple(topics))


class Room:
    """An engine that can die, and two gateways."""

    def __init__(self, root: Path) -> None:
        self.path = root / "link"
        self.gateways = [Gateway(self.path, 1), Gateway(self.path, 2)]

    async def start_engine(self) -> None:
        self.engine = Engine()
        self.router = self.engine.router = Router(self.engine, SECRET, Counters())  # type: ignore[arg-type]
        self.listener = LinkListener(self.path, self.router)
        await self.listener.start()

    async def kill_engine(self) -> None:
        await self.listener.close(0)
        for gateway in self.gateways:
            async with asyncio.timeout(5):
                while gateway.link.ready.is_set():
                    await asyncio.sleep(0.001)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(tmp_path)
    await made.start_engine()
    for gateway in made.gateways:
        assert await gateway.link.start() == SECRET
        await gateway.link.ready.wait()
    yield made
    for gateway in made.gateways:
        await gateway.link.close(1)
    await made.listener.close(1)


def stored(room: Room, session: int, name: str, sender: str, key: str, seq: int = 1) -> None:
    record = Send(1, 1, sender, name, key, "text", b"1")
    message = Message(name, seq, 1, 1, sender, key, "text", b"1")
    room.engine.offset += 1
    room.router.tell([(session, record, message)], room.engine.offset)


async def test_an_outcome_reaches_who_needs_it_and_only_the_origin_answers(room: Room) -> None:
    one, two = room.gateways
    a, b = one.session(1), two.session(1)
    await one.engine.login(a, "a", "d", "")
    await two.engine.login(b, "b", "d", "")
    one.engine.send(a, "k", "@b", "text", b"1", False)
    await room.engine.until("send", a, "k", False)
    stored(room, a, "a|b", "a", "k")
    await one.until("told", a, "Message")
    await two.until("told", 0, "Message")
    stored(room, 0, "a|c", "c", "other")
    two.engine.send(b, "k2", "@b", "text", b"1", False)
    await room.engine.until("send", b, "k2", False)
    stored(room, b, "b|b", "b", "k2")
    await two.until("told", b, "Message")
    assert [outcome.conversation for _, _, outcome in two.told if isinstance(outcome, Message)] == [
        "a|b",
        "b|b",
    ]


async def test_duplicates_rejections_and_refusals_go_to_their_session(room: Room) -> None:
    one, two = room.gateways
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    for ref in "xyz":
        one.engine.send(a, ref, "@b", "text", b"1", False)
    await room.engine.until("send", a, "z", False)
    records = [Send(1, 1, "a", "a|b", ref, "text", b"1") for ref in "xy"]
    room.router.tell(
        [(a, records[0], Duplicate("a|b", Sent(1, 2, 3))), (a, records[1], Rejected("forbidden", "no"))]
    )
    room.router.refuse([(a, "z")], WireError("unavailable", "later"))
    await one.until("refused", a, "z", "unavailable")
    assert [(session, record.key, type(outcome)) for session, record, outcome in one.told] == [
        (a, "x", Duplicate), (a, "y", Rejected),
    ]  # fmt: skip
    room.engine.refusal = refused("busy", "later")
    one.engine.send(a, "w", "@b", "text", b"1", False)
    await one.until("refused", a, "w", "busy")
    assert two.told == []


async def test_a_logins_groups_are_carried_before_what_follows_is_told(room: Room) -> None:
    """Logins, and in the same frame the news that one of the users has left a group: all in one turn."""
    one = room.gateways[0]
    room.engine.groups = ["#g"]
    room.engine.gate.clear()
    tasks = [asyncio.create_task(one.engine.login(one.session(n), f"u{n}", "d", "")) for n in range(3)]
    await room.engine.until("login", one.session(2))
    turns: list[int] = []
    take = one.link._take
    one.link._stream._take = lambda received: (turns.append(len(received)), take(received))  # type: ignore
    room.engine.gate.set()
    while len(room.engine.logged_in) < 3:
        await asyncio.sleep(0)
    left = GroupChanged("#g", "", "open", "", 1, 1, 0, (("left", "u1"),))
    room.router.tell([(0, Join(1, 1, "u1", "#g", 9, 9), left)], 8)
    assert [groups for _, groups in await asyncio.gather(*tasks)] == [None] * 3, "they are carried already"
    await one.until("told", 0, "GroupChanged")
    assert one.heard == [*[("carry", one.session(n), ("#g",)) for n in range(3)], ("told", 0, "GroupChanged")]
    assert len(turns) == 1
    stored(room, 0, "#g", "x", "k")
    await one.until("told", 0, "Message")


async def test_an_answer_about_presence_is_taken_before_what_follows(room: Room) -> None:
    one = room.gateways[0]
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    order: list[str] = []

    async def watch() -> None:
        order.append(f"answer {(await one.engine.presence(a, ['b'], True))['@b'].online}")

    one.presence = lambda sessions, states: order.append(f"push {states['@b'].online}")  # type: ignore[method-assign]
    watching = asyncio.create_task(watch())
    await room.engine.until("presence", a)
    room.router.presence([a], {"@b": PresenceState(True, None)})
    await watching
    while len(order) < 2:
        await asyncio.sleep(0)
    assert order == ["answer False", "push True"]
    assert one.link.sessions[a].followed == {"b": True}


async def test_a_replaced_device_hands_over_what_it_had_acknowledged_before_the_newer_is_answered(
    room: Room,
) -> None:
    one, two = room.gateways
    older, newer = one.session(1), two.session(1)
    await one.engine.login(older, "a", "d", "")
    await two.engine.login(newer, "a", "d", "")
    assert ("ack", newer, "@late", 9) in room.engine.calls
    assert ("replaced", older) in one.heard
    assert ("logout", older) in room.engine.calls


async def test_a_defect_is_no_refusal(room: Room) -> None:
    with pytest.raises(RuntimeError):
        await room.gateways[0].engine.leave_group(1, "#g")


async def test_a_dead_gateways_sessions_are_logged_out(room: Room) -> None:
    one, two = room.gateways
    for n in range(3):
        await one.engine.login(one.session(n + 1), f"u{n}", "d", "")
    await two.engine.login(two.session(1), "b", "d", "")
    await one.link.close(1)
    for n in range(3):
        await room.engine.until("logout", one.session(n + 1))
    assert set(room.engine.logged_in) == {two.session(1)}
    stored(room, 0, "b|u0", "u0", "k")
    await two.until("told", 0, "Message")


async def test_over_an_engines_death(room: Room) -> None:
    one = room.gateways[0]
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    await one.engine.login(one.session(2), "gone", "d", "")
    for ref in ("stored", "lost"):
        one.engine.send(a, ref, "@b", "text", b"1", False)
    room.engine.gate.clear()
    joining = asyncio.create_task(one.engine.join_group(a, "#g"))
    await room.engine.until("join", a)
    stored(room, 0, "a|c", "c", "told")
    await one.until("told", 0, "Message")
    await room.kill_engine()
    one.engine.send(a, "meanwhile", "@b", "text", b"1", False)
    for seq in (3, 5, 4):
        one.engine.ack(a, "@b", seq)
    one.engine.logout(one.session(2))
    await room.start_engine()
    message = Message("a|b", 1, 1, 1, "a", "stored", "text", b"1")
    room.engine.gap = Gap([message], ["#closed"], ["#resync"])
    room.engine.groups = ["#h"]
    assert await joining == {"group": "#g"}
    await room.engine.until("send", a, "meanwhile", True)
    await one.until("told", a, "Message")
    news = [call for call in room.engine.calls if call[0] != "resume"]
    assert ("gap", 8) in news
    assert [call for call in news if call[0] in ("ack", "send", "logout")] == [
        ("ack", a, "@b", 5), ("logout", one.session(2)), ("send", a, "lost", True), ("send", a, "meanwhile", True),
    ]  # fmt: skip
    assert ("resume", a, False) in room.engine.calls
    assert ("carry", a, ("#h",)) in one.heard
    assert one.link._told == room.engine.offset, "it is told again after the next death"
    assert ("away", (), ("#closed",)) in one.heard
    assert ("resync", ("#resync",)) in one.heard
    stored(room, 0, "#h", "x", "k")
    async with asyncio.timeout(5):
        while len(one.told) < 3:
            await asyncio.sleep(0.001)


async def test_what_engines_die_of_is_not_asked_a_third_time(room: Room) -> None:
    one = room.gateways[0]
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    room.engine.gate.clear()
    joining = asyncio.create_task(one.engine.join_group(a, "#g"))
    await room.engine.until("join", a)
    await room.kill_engine()
    await room.start_engine()
    room.engine.gate.clear()
    await room.engine.until("join", a)
    await room.kill_engine()
    await room.start_engine()
    with pytest.raises(Refused, match="does not answer"):
        await joining
    assert ("join", a) not in room.engine.calls


async def test_more_sessions_than_a_frame_holds_go_on(room: Room, monkeypatch) -> None:
    monkeypatch.setattr(stream, "MAX_FRAME_BYTES", 1 << 20)
    one, count = room.gateways[0], 300
    for n in range(count):
        await one.engine.login(one.session(n), f"u{n}", "d", "")
        one.link.follow(one.session(n), {f"somebody-{other}": True for other in range(250)}, True)
    await room.kill_engine()
    await room.start_engine()
    room.engine.groups = [f"#a-group-of-many-{n}" for n in range(250)]
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            await one.link.ready.wait()
    assert not [entry for entry in logs if entry["event"] == "cut a link"]
    assert room.engine.logged_in.keys() == {one.session(n) for n in range(count)}
    assert {heard[1] for heard in one.heard if heard[0] == "carry"} == room.engine.logged_in.keys()


async def test_where_the_gap_cannot_be_told_all_come_back(room: Room) -> None:
    one = room.gateways[0]
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    await room.kill_engine()
    await room.start_engine()
    room.engine.gap = None
    await one.until("away", (a,), ())
    assert a not in room.engine.logged_in


async def test_without_an_engine_for_long_what_waits_is_unavailable(room: Room, monkeypatch) -> None:
    monkeypatch.setattr(uplink, "ANSWER_S", 0.2)
    one = room.gateways[0]
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    await room.kill_engine()
    one.engine.send(a, "r", "@b", "text", b"1", False)
    await one.until("refused", a, "r", "unavailable")
    with pytest.raises(Refused, match="unavailable"):
        one.engine.send(a, "s", "@b", "text", b"1", False)
    with pytest.raises(Refused, match="unavailable"):
        await one.engine.join_group(a, "#g")


async def test_what_a_hung_engine_leaves_unanswered_is_unavailable(room: Room, monkeypatch) -> None:
    monkeypatch.setattr(uplink, "ANSWER_S", 0.2)
    gateway, _ = room.gateways
    await gateway.engine.login(gateway.session(1), "alice", "d", "")
    unread: list[tuple[Any, ...]] = []
    take = room.router._take
    room.router._take = lambda *received: unread.append(received)  # type: ignore[method-assign]
    with pytest.raises(Refused, match="does not answer"):
        await gateway.engine.join_group(gateway.session(1), "#g")
    with pytest.raises(Refused, match="does not answer"):
        await gateway.engine.login(gateway.session(2), "bob", "d", "")
    async with asyncio.timeout(5):
        while messages.Logout(gateway.session(2)) not in [each for _, some in unread for each in some]:
            await asyncio.sleep(0)
    room.router._take = take  # type: ignore[method-assign]
    for received in unread:
        take(*received)
    # Late answers are nobody's, and who was given up is not let in.
    assert (await gateway.engine.join_group(gateway.session(1), "#g"))["group"] == "#g"
    assert ("login", gateway.session(2)) not in room.engine.calls
    assert gateway.session(2) not in gateway.link.sessions
    await gateway.engine.login(gateway.session(2), "carol", "d", "")
    assert room.engine.logged_in[gateway.session(2)] == ("carol", "d")


async def test_an_engine_that_has_much_to_do_is_waited_for(room: Room, monkeypatch) -> None:
    """What it has been asked it will do: a client that asked again would only stand behind that."""
    monkeypatch.setattr(uplink, "ANSWER_S", 0.05)
    monkeypatch.setattr(uplink, "SWEEP_S", 0.02)
    gateway, _ = room.gateways
    sweeps = asyncio.Semaphore(0)
    gateway.link._figures = lambda: sweeps.release() or {}  # type: ignore[func-returns-value]
    await gateway.engine.login(gateway.session(1), "alice", "d", "")
    room.engine.gate.clear()
    joining = asyncio.create_task(gateway.engine.join_group(gateway.session(1), "#g"))
    async with asyncio.timeout(5):
        for _ in range(20):
            await sweeps.acquire()
    room.engine.gate.set()
    assert await joining == {"group": "#g"}


async def test_no_second_login_while_one_is_under_way_in_the_engine(room: Room) -> None:
    gateway, _ = room.gateways
    room.engine.gate.clear()
    first = asyncio.create_task(gateway.engine.login(gateway.session(2), "bob", "d", ""))
    await room.engine.until("login", gateway.session(2))
    gateway.engine.logout(gateway.session(2))
    await room.engine.until("logout", gateway.session(2))
    with pytest.raises(Refused, match="an earlier login"):
        await gateway.engine.login(gateway.session(2), "carol", "d", "")
    room.engine.gate.set()
    async with asyncio.timeout(5):
        while room.router._entering:
            await asyncio.sleep(0)
    await gateway.engine.login(gateway.session(2), "carol", "d", "")
    assert room.engine.logged_in[gateway.session(2)] == ("carol", "d")
    first.cancel()


async def test_who_gave_up_during_an_outage_is_not_logged_in_after_it(room: Room) -> None:
    """It would throw out the connection that its user made instead."""
    gateway, other = room.gateways
    await gateway.engine.login(gateway.session(9), "z", "d", "")
    await room.kill_engine()
    early = asyncio.create_task(gateway.engine.login(gateway.session(1), "alice", "d", ""))
    await asyncio.sleep(0)
    gateway.engine.logout(gateway.session(1))
    later = asyncio.create_task(other.engine.login(other.session(1), "alice", "d", ""))
    await room.start_engine()
    await later
    with pytest.raises(Refused, match="is gone"):
        await early
    assert ("login", gateway.session(1)) not in room.engine.calls
    assert room.engine.logged_in[other.session(1)] == ("alice", "d")


async def test_a_gateway_that_takes_nothing_is_cut_and_told_the_rest(room: Room, monkeypatch) -> None:
    monkeypatch.setattr(router, "MAX_BACKLOG_BYTES", 1000)
    one = room.gateways[0]
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    link = room.router.links[1]
    monkeypatch.setattr(type(link.stream), "backlog", property(lambda stream: 2000))
    message = Message("a|b", 1, 1, 1, "b", "k", "text", b"1")
    room.engine.gap = Gap([message], (), ())
    stored(room, 0, "a|b", "b", "k")
    await room.engine.until("resume", a, True)
    assert ("logout", a) in room.engine.calls
    await one.until("told", 0, "Message")


async def behind(room: Room) -> tuple[Gateway, int, router.Link]:
    """A gateway, a session of its, and their link, in which much waits."""
    one = room.gateways[0]
    a = one.session(1)
    await one.engine.login(a, "a", "d", "")
    link = room.router.links[1]
    link.stream.pause_writing()
    return one, a, link


async def test_reads_wait_for_room_in_the_link(room: Room) -> None:
    """A storm of them would fill it, and what is told would wait behind."""
    one, a, link = await behind(room)
    reads = [asyncio.create_task(one.engine.history(a, "@b", None, None, 10)) for _ in range(20)]
    assert await one.engine.join_group(a, "#g") == {"group": "#g"}, "only reads wait"
    assert not [call for call in room.engine.calls if call[0] == "history"]
    link.stream.resume_writing()
    pages = await asyncio.gather(*reads)
    assert len(pages) == 20
    assert room.engine.most_reads == router.READS_AT_A_TIME


async def test_reads_that_wait_for_a_link_end_with_it(room: Room) -> None:
    one, a, link = await behind(room)
    read = asyncio.create_task(one.engine.history(a, "@b", None, None, 10))
    await one.engine.join_group(a, "#g")
    link.stream.abort()
    await read  # asked again over the next link
    assert len([call for call in room.engine.calls if call[0] == "history"]) == 1
    async with asyncio.timeout(5):
        while room.router._tasks:
            await asyncio.sleep(0.001)


async def test_a_stranger_on_the_socket_is_cut_off(room: Room) -> None:
    for first in (messages.Listening(), messages.Hello(1, "", 0), messages.Hello(0, "", 0)):
        reader, writer = await asyncio.open_unix_connection(room.path)
        body = b"\xdd\0\0\0\x01" + uplink.msgspec.msgpack.encode(first)
        writer.write(len(body).to_bytes(4, "big") + body)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
    assert room.gateways[0].link.ready.is_set()


async def test_figures_are_summed_and_stay(room: Room) -> None:
    assert (await room.router.total()).pushes == 3
    await room.gateways[0].link.close(1)
    async with asyncio.timeout(5):
        while 1 in room.router.links:
            await asyncio.sleep(0.001)
    assert (await room.router.total()).pushes == 3


async def test_a_gateway_that_nothing_concerns_hears_how_far_it_is(room: Room) -> None:
    """Else the journal is trimmed past it, and an engine's death costs its connections."""
    room.engine.offset = 700
    await room.router.total()  # asks for their figures, which come twice a second anyway
    async with asyncio.timeout(5):
        while {gateway.link._told for gateway in room.gateways} != {700}:
            await asyncio.sleep(0.001)
