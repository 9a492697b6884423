"""The gateway over real sockets, with an engine that a test steers by hand."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus
from websockets.protocol import State

from gateway_rig import now_ms, running_gateway, told
from hongyan.errors import WireError, refused
from hongyan.gateway import fanout, frames, limits
from hongyan.gateway.outbox import Outbox
from hongyan.ids import Snowflake
from hongyan.protocol.outcomes import Duplicate, GroupChanged, Rejected
from hongyan.protocol.state import Message, Sent
from outsider import JSON, MSGPACK, Outsider

flush = Outbox.flush


@asynccontextmanager
async def client_of(gateway, user=None, device="d1", subprotocol=JSON):
    client = await Outsider.connect(f"ws://127.0.0.1:{gateway.port}/ws", subprotocol)
    try:
        if user is not None:
            await client.login(user, device)
        yield client
    finally:
        if client.ws.state is not State.CLOSED:
            client.abort()


def message(conversation, seq, sender, key="k", content=b'"hi"'):
    return Message(conversation, seq, 1000 + seq, 5000 + seq, sender, key, "text", content)


async def test_send_ack_and_pushes_to_everyone_but_the_origin():
    async with (
        running_gateway() as (gateway, engine),
        client_of(gateway, "alice", "a1") as a1,
        client_of(gateway, "alice", "a2", MSGPACK) as a2,
        client_of(gateway, "bob") as bob,
    ):
        ack = await a1.say("@bob", {"x": [1, None]}, "key-1")
        assert ack["data"] == {"ref": "key-1", "conversation": "@bob", "seq": 1, "duplicate": False}
        mine = await a2.push("message")
        assert mine["data"]["conversation"] == "@bob"
        assert mine["data"]["key"] == "key-1"
        theirs = await bob.push("message")
        assert theirs["data"]["conversation"] == "@alice"
        assert theirs["data"]["content"] == {"x": [1, None]}
        assert "key" not in theirs["data"]
        assert theirs["message_id"] == ack["message_id"]
        for client in (a1, a2, bob):
            await client.barrier()
            assert client.unread == []
        assert gateway.in_flight == 0
        assert engine.sent[0][1:] == ("key-1", "@bob", "text", b'{"x": [1, null]}', False)


async def test_who_should_have_heard_of_what_cannot_be_told_is_closed(monkeypatch):
    """No push is dropped silently: they come back and find it."""
    async with (
        running_gateway() as (gateway, _),
        client_of(gateway, "alice") as alice,
        client_of(gateway, "bob") as bob,
        client_of(gateway, "carol") as carol,
    ):
        stored = gateway._stored

        def fail(*args):
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(
            gateway,
            "_stored",
            lambda session, of: fail() if of.conversation == "alice|bob" else stored(session, of),
        )
        gateway.tell([told(message("alice|bob", 1, "bob")), told(message("carol|dave", 1, "dave"))])
        assert (await carol.push("message"))["data"]["seq"] == 1
        for client in (alice, bob):
            assert (await client.closed())[0] == 1011
        await carol.barrier()
        (connection,) = gateway.sessions.values()
        gateway.subscribe(connection, "#g")
        monkeypatch.setattr(gateway, "_group_changed", fail)
        gateway.tell([told(GroupChanged("#g", "", "open", "x", 2, 0, 1, (("left", "dave"),)))])
        assert (await carol.closed())[0] == 1011


async def test_a_message_to_oneself_is_pushed_once_to_the_other_device():
    async with (
        running_gateway() as (gateway, _),
        client_of(gateway, "alice", "a1") as a1,
        client_of(gateway, "alice", "a2") as a2,
    ):
        await a1.say("@alice", 1)
        assert (await a2.push("message"))["data"]["conversation"] == "@alice"
        for client in (a1, a2):
            await client.barrier()
            assert client.unread == []


async def test_duplicates_and_refusals_are_answered_to_the_origin_only():
    async with (
        running_gateway(manual=True) as (gateway, engine),
        client_of(gateway, "alice") as alice,
        client_of(gateway, "bob") as bob,
    ):
        for key in ("dup", "no", "down"):
            await alice.post("@bob", 1, key)
        await engine.arrived(3)
        session = engine.sent[0][0]
        gateway.tell([
            told(Duplicate("alice|bob", Sent(7, 70, 700)), session, "dup", "alice"),
            told(Rejected("unknown_user", "no such user", "data.to"), session, "no", "alice"),
        ])  # fmt: skip
        gateway.refuse([(session, "down")], WireError("unavailable", "later"))
        again = await alice.reply("dup")
        assert again["data"] == {"ref": "dup", "conversation": "@bob", "seq": 7, "duplicate": True}
        assert again["message_id"] == "70"
        assert (await alice.reply("no"))["data"]["field"] == "data.to"
        assert (await alice.reply("down"))["data"]["retry"] == "backoff"
        await bob.barrier()
        assert bob.unread == []


async def test_answers_need_no_id_that_a_disk_must_cover():
    async with running_gateway() as (gateway, _), client_of(gateway, "alice") as alice:
        gateway.snowflake = Snowflake(1, now_ms, mark_ms=0)
        await alice.barrier()
        assert (await alice.refused("nonsense"))["code"] == "unknown_type"
        gateway.refuse([(next(iter(gateway.sessions)), "r")], WireError("unavailable", "no"))
        assert (await alice.reply("r"))["data"]["code"] == "unavailable"


async def test_many_slow_readers_are_bounded_together():
    """Each is within its own limit; together they are not."""
    async with running_gateway(max_outbound_bytes=3 << 20, outbound_buffer_bytes=2 << 20) as (
        gateway,
        engine,
    ):
        engine.memberships = {f"u{n}": ["#g"] for n in range(6)}
        async with AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(client_of(gateway, f"u{n}")) for n in range(6)]
            for client in slow:
                client.ws.transport.pause_reading()
            seq = peak = 0
            async with asyncio.timeout(30):
                while not gateway.counters.limit_hits.get("max_outbound_bytes"):
                    seq += 1
                    content = json.dumps("x" * 60_000).encode()
                    gateway.tell([told(message("#g", seq, "somebody", content=content))])
                    peak = max(peak, sum(wire.backlog for wire in gateway._wires()))
                    await asyncio.sleep(0.02)
            assert peak < 6 << 20, "half of what their own limits allow"
            assert gateway.counters.slow_consumers >= 1
            assert len(gateway.sessions) >= 3, "only the largest are closed"
            assert gateway.counters.outbound_bytes > 0


async def test_topics_change_before_later_messages_of_the_same_batch():
    async with (
        running_gateway(manual=True) as (gateway, _),
        client_of(gateway, "alice") as alice,
        client_of(gateway, "bob") as bob,
    ):

        def changed(event, user, members):
            return told(GroupChanged("#t", "", "open", "alice", members, 0, 1, ((event, user),)))

        gateway.tell([
            changed("joined", "alice", 1), told(message("#t", 1, "alice")),
            changed("joined", "bob", 2), told(message("#t", 2, "alice")),
            changed("left", "bob", 1), told(message("#t", 3, "alice")),
        ])  # fmt: skip
        await bob.barrier()
        assert [(e["type"], e["data"].get("seq", e["data"].get("event"))) for e in bob.unread] == [
            ("group_event", "joined"), ("message", 2), ("group_event", "left"),
        ]  # fmt: skip
        await alice.barrier()
        assert [e["data"]["seq"] for e in alice.unread if e["type"] == "message"] == [1, 2, 3]
        assert [e["data"]["user"] for e in alice.unread if e["type"] == "group_event"] == [
            "alice",
            "bob",
            "bob",
        ]
        assert all(e["data"]["key"] == "k" for e in alice.unread if e["type"] == "message")


async def test_a_large_groups_events_go_to_the_user_alone():
    async with (
        running_gateway(manual=True, group_event_max_members=2) as (gateway, _),
        client_of(gateway, "alice") as alice,
        client_of(gateway, "bob") as bob,
    ):
        for user, members in (("alice", 1), ("bob", 3)):
            outcome = GroupChanged("#t", "", "open", "alice", members, 0, 1, (("joined", user),))
            gateway.tell([told(outcome)])
        await alice.barrier()
        await bob.barrier()
        assert [e["data"]["user"] for e in alice.unread] == ["alice"]
        assert [e["data"]["user"] for e in bob.unread] == ["bob"]


async def test_what_comes_during_a_login_follows_its_answer():
    async with running_gateway(manual=True) as (gateway, engine), client_of(gateway) as alice:
        engine.gate = asyncio.Event()
        engine.memberships["alice"] = ["#old"]
        await alice.send("login", {"token": "alice", "device_id": "d1"}, "in")
        await alice.post("@bob", 1, "early")  # deferred: served after the login, in order
        await engine.waiting.wait()
        joined = GroupChanged("#new", "", "open", "x", 2, 0, 1, (("joined", "alice"),))
        gateway.tell([told(message("alice|bob", 1, "bob")), told(joined)])
        gateway.tell([told(message("#new", 1, "x"))])
        assert engine.sent == []
        engine.memberships["alice"] = ["#old", "#new"]
        engine.gate.set()
        first = await alice.receive()
        assert first["type"] == "login"
        assert set(first["data"]) == {
            "ref", "user_id", "device_id", "session_id",
            "heartbeat_interval_ms", "max_frame_bytes", "features",
        }  # fmt: skip
        assert [(await alice.receive())["type"] for _ in range(3)] == ["message", "group_event", "message"]
        await engine.arrived(1)
        gateway.tell([told(message("#old", 1, "x"))])
        assert (await alice.push("message", conversation="#old"))["data"]["seq"] == 1


async def test_before_the_login_everything_else_is_unauthenticated():
    async with running_gateway() as (gateway, engine), client_of(gateway) as client:
        for kind, data in (
            ("heartbeat", None),
            ("send_message", {"to": "@b", "content_type": "t", "content": 1}),
        ):
            assert (await client.refused(kind, data))["code"] == "unauthenticated"
        await client.login("alice")
        assert (await client.refused("login", {"token": "alice", "device_id": "d"}))[
            "code"
        ] == "invalid_state"
        await client.barrier()
        assert engine.sent == []


async def test_invalid_fields_of_a_login_do_not_close():
    async with running_gateway() as (gateway, _), client_of(gateway) as client:
        assert (await client.refused("login", {"token": "alice"}))["code"] == "invalid_field"
        await client.login("alice")


@pytest.mark.parametrize("code", ["bad_token", "token_expired"])
async def test_a_refused_token_closes_4401(code):
    async with running_gateway() as (gateway, _), client_of(gateway) as client:
        assert (await client.refused("login", {"token": f"!{code}", "device_id": "d"}))["code"] == code
        assert (await client.closed())[0] == 4401


@pytest.mark.parametrize(("code", "closes"), [("limit_exceeded", True), ("busy", False)])
async def test_what_the_engine_refuses_at_login(code, closes):
    async with running_gateway() as (gateway, engine), client_of(gateway) as client:
        engine.refuse_login = refused(code, "no")
        assert (await client.refused("login", {"token": "alice", "device_id": "d"}))["code"] == code
        assert gateway.topics == {}
        if closes:
            assert (await client.closed())[0] == 4401
        else:
            engine.refuse_login = None
            await client.login("alice")


@pytest.mark.parametrize("part", ["verifier", "login"])
async def test_a_login_that_fails_by_a_defect_closes_1011_and_leaves_no_session(part, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken on purpose")

    async with running_gateway() as (gateway, engine), client_of(gateway) as client:
        if part == "verifier":
            monkeypatch.setattr(gateway.verifier, "verify", fail)
        elif part == "login":
            engine.broken = True
        else:
            monkeypatch.setattr(engine, "groups", fail)
        (session,) = gateway.sessions
        await client.send("login", {"token": "alice", "device_id": "d"})
        assert (await client.closed())[0] == 1011
        assert (gateway.session_count, gateway.topics, gateway.counters.sessions) == (0, {}, 0)
        assert part == "verifier" or set(engine.logouts) == {session}


async def test_a_login_that_fails_after_its_connection_has_gone_leaves_no_session(monkeypatch):
    async with running_gateway() as (gateway, engine), client_of(gateway) as client:
        engine.gate = asyncio.Event()
        (session,) = gateway.sessions
        await client.send("login", {"token": "alice", "device_id": "d"})
        await engine.waiting.wait()
        gateway.replace(session)
        assert engine.logouts == [session]
        engine.logouts.clear()
        engine.logged_out.clear()
        engine.refuse_login = RuntimeError("broken on purpose")
        engine.gate.set()
        async with asyncio.timeout(5):
            await engine.logged_out.wait()
        assert engine.logouts == [session], "the engine may have taken it before it failed"


async def test_a_login_that_cannot_be_served_for_now_has_as_long_for_the_next(monkeypatch):
    """Refused past the deadline by which it was in time: not closed for it, nor kept until the silence deadline."""
    async with running_gateway(login_timeout_ms=500) as (gateway, engine), client_of(gateway) as client:
        engine.gate = asyncio.Event()
        engine.refuse_login = refused("unavailable", "no")
        ref = await client.send("login", {"token": "alice", "device_id": "d"})
        await engine.waiting.wait()
        monkeypatch.setattr(gateway.wheel, "_monotonic", lambda: time.monotonic() + 5)
        gateway.wheel.turn()
        engine.gate.set()
        assert (await client.reply(ref))["data"]["code"] == "unavailable"
        gateway.wheel.turn()
        assert (await client.refused("heartbeat"))["code"] == "unauthenticated"
        assert (await client.closed())[0] == 4401


class Queue:
    """The gateway's share for logins, at a standstill until the test lets go of it."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self.turns = 0
        self.waits = asyncio.Event()
        self.go = asyncio.Event()

    async def turn(self) -> None:
        self.waits.set()
        await self.go.wait()

    def charge(self, seconds: float) -> None:
        assert seconds >= 0

    charge_too = charge

    def later(self) -> float:
        return self.wait_s + 1


async def test_a_login_that_waits_for_its_turn_is_in_time_and_what_follows_it_waits_too(monkeypatch):
    async with running_gateway(login_timeout_ms=500) as (gateway, _), client_of(gateway) as client:
        gateway.logins = queue = Queue(1.0)
        login = await client.send("login", {"token": "alice", "device_id": "d"})
        heartbeat = await client.send("heartbeat", {})
        async with asyncio.timeout(10):
            await queue.waits.wait()
        monkeypatch.setattr(gateway.wheel, "_monotonic", lambda: time.monotonic() + 5)
        gateway.wheel.turn()
        queue.go.set()
        assert (await client.reply(login))["type"] == "login"
        assert (await client.reply(heartbeat))["type"] == "heartbeat"


async def test_one_that_is_closed_while_its_login_waits_is_not_logged_in(monkeypatch):
    async with running_gateway() as (gateway, engine), client_of(gateway) as client:
        monkeypatch.setattr(engine, "login", None)
        gateway.logins = queue = Queue(1.0)
        await client.send("login", {"token": "alice", "device_id": "d"})
        async with asyncio.timeout(10):
            await queue.waits.wait()
        (connection,) = gateway.sessions.values()
        connection.close(frames.RESTART, "retry_after_ms=1")
        assert (await client.closed())[0] == 1012
        queue.go.set()
        async with asyncio.timeout(10):
            await asyncio.wait(gateway._tasks)
        assert gateway.topics == {}


async def test_a_login_that_would_wait_long_is_told_when_to_come_back_and_does(monkeypatch):
    """On the same connection, which is as long in time as it was told to wait, and not silent meanwhile."""
    async with (
        running_gateway(login_timeout_ms=500, heartbeat_interval_ms=1000) as (gateway, _),
        client_of(gateway) as client,
    ):
        gateway.logins = queue = Queue(6.0)
        error = await client.refused("login", {"token": "alice", "device_id": "d"})
        assert (error["code"], error["retry"]) == ("busy", "backoff")
        assert 7000 <= error["retry_after_ms"] <= 8000
        assert gateway.counters.logins_postponed == 1
        monkeypatch.setattr(gateway.wheel, "_monotonic", lambda: time.monotonic() + 7)
        gateway.wheel.turn()
        queue.wait_s = 0.0
        queue.go.set()
        await client.login("alice", "d")


async def test_one_that_was_told_to_come_back_and_does_not_is_closed(monkeypatch):
    async with running_gateway(login_timeout_ms=500) as (gateway, _), client_of(gateway) as client:
        gateway.logins = Queue(6.0)
        await client.refused("login", {"token": "alice", "device_id": "d"})
        monkeypatch.setattr(gateway.wheel, "_monotonic", lambda: time.monotonic() + 9.5)
        gateway.wheel.turn()
        assert (await client.closed())[0] == 4401


async def test_failed_logins_are_throttled_but_a_good_token_always_logs_in():
    async with running_gateway(failed_logins_per_minute=2) as (gateway, _):
        codes = []
        for token in ("!bad_token", "!token_expired", "!bad_token", "!bad_token", "!token_expired"):
            async with client_of(gateway) as client:
                error = await client.refused("login", {"token": token, "device_id": "d"})
                codes.append(error["code"])
                if error["code"] == "rate_limited":
                    assert error["retry_after_ms"] > 0
        assert codes == ["bad_token", "token_expired", "bad_token", "rate_limited", "token_expired"]
        async with client_of(gateway, "alice") as client:
            await client.barrier()


async def test_reads_are_served_one_at_a_time_and_in_order():
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        engine.gate = asyncio.Event()
        engine.waiting.clear()
        await client.send("sync_offline", {}, "s1")
        await client.send("history", {"conversation": "@bob"}, "h1")
        await client.send("join_group", {"group": "#t"}, "j1")
        await client.send("heartbeat", None, "b1")
        await engine.waiting.wait()
        assert engine.calls == ["sync"]
        await client.ws.ping()  # control frames overtake
        engine.gate.set()
        refs = [(await client.receive())["data"]["ref"] for _ in range(4)]
        assert refs == ["s1", "h1", "j1", "b1"]
        assert engine.calls == ["sync", "history", "join_group"]


async def test_a_failing_handler_answers_internal_and_the_connection_stays():
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        engine.broken = True
        assert (await client.refused("history", {"conversation": "@bob"}))["code"] == "internal"
        assert (await client.refused("presence", {"users": ["@bob"]}))["code"] == "internal"
        await client.barrier()


async def test_acks_and_presence_reach_the_engine():
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        await client.send("ack", {"conversation": "@bob", "seq": 4})
        await client.send("ack", {"acks": {"@bob": 5, "#t": 6}})
        states = await client.ask("presence", {"users": ["@bob"], "subscribe": True})
        assert states["states"] == {"@bob": {"online": False, "last_seen": 12}}
        assert engine.acks == [("@bob", 4), ("@bob", 5), ("#t", 6)]


async def test_replaced_connections_close_4409_and_leave_every_table():
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        (session,) = gateway.sessions
        gateway.replace(session)
        assert (await client.closed())[0] == 4409
        assert (gateway.session_count, gateway.topics, engine.logouts) == (0, {}, [session])


async def test_requests_above_the_rate_are_refused():
    async with (
        running_gateway(rate_limit=1, rate_burst=3) as (gateway, engine),
        client_of(gateway, "alice") as client,  # the login counts
    ):
        for n in range(4):
            await client.post("@bob", n, f"k{n}")
        replies = [await client.reply(f"k{n}") for n in range(4)]
        assert [r["type"] for r in replies] == ["ack", "ack", "error", "error"]
        assert replies[2]["data"]["code"] == "rate_limited"
        assert 0 < replies[2]["data"]["retry_after_ms"] <= 1001
        assert len(engine.sent) == 2


async def test_heartbeats_above_the_rate_are_read_slowly_and_all_answered():
    async with (
        running_gateway(rate_limit=200, rate_burst=1) as (gateway, _),
        client_of(gateway, "alice") as client,
    ):
        began = time.monotonic()
        refs = [await client.send("heartbeat") for _ in range(60)]
        for ref in refs:
            assert (await client.reply(ref))["type"] == "heartbeat"
        await client.barrier()
        assert time.monotonic() - began >= 0.2  # 60 at 200 a second: at least 295 ms were due, less a turn


async def test_a_slow_consumer_is_closed_4430_and_holds_nothing():
    async with (
        running_gateway(manual=True, outbound_buffer_bytes=65536) as (gateway, _),
        client_of(gateway, "alice") as alice,
        client_of(gateway, "bob") as bob,
    ):
        content = json.dumps("x" * 60_000).encode()
        seq = 0
        while gateway.session_count == 2 and seq < 2000:
            seq += 1
            gateway.tell([told(message("alice|carol", seq, "carol", content=content))])
            await asyncio.sleep(0)
        assert gateway.session_count == 1
        assert "@alice" not in gateway.topics
        assert (await alice.closed())[0] == 4430
        seqs = [e["data"]["seq"] for e in alice.unread]
        assert seqs == list(range(1, len(seqs) + 1))
        await bob.barrier()


async def test_close_codes_of_peers_make_no_series_without_end():
    async with running_gateway() as (gateway, _):
        for code in (1000, 3000, 4999):
            async with client_of(gateway) as client:
                await client.ws.close(code)
        assert gateway.counters.closes == {"1000": 1, "other": 2}


async def test_a_peer_that_is_silent_is_closed_4408():
    async with (
        running_gateway(heartbeat_interval_ms=100) as (gateway, engine),
        client_of(gateway, "alice") as client,
    ):
        assert (await client.closed())[0] == 4408
        assert len(engine.logouts) == 1


async def test_no_login_in_time_closes_4401():
    async with running_gateway(login_timeout_ms=100) as (gateway, _), client_of(gateway) as client:
        assert (await client.closed())[0] == 4401


async def test_an_expiring_token_ends_the_connection():
    async with running_gateway() as (gateway, _), client_of(gateway, "short") as client:
        assert (await client.push("error"))["data"]["code"] == "token_expired"
        assert (await client.closed())[0] == 4401


async def test_a_token_that_expires_during_its_login_ends_the_connection_and_says_why():
    async with running_gateway(login_timeout_ms=600) as (gateway, engine), client_of(gateway) as client:
        engine.gate = asyncio.Event()
        await client.send("login", {"token": "short", "device_id": "d1"})
        assert (await client.push("error"))["data"]["code"] == "token_expired"
        assert (await client.closed())[0] == 4401
        engine.gate.set()


async def test_pings_are_answered():
    async with running_gateway() as (gateway, _), client_of(gateway) as client:
        async with asyncio.timeout(5):
            await (await client.ws.ping(b"x" * 125))


async def status_of(gateway, path="/ws", **options):
    with pytest.raises(InvalidStatus) as caught:
        async with ws_connect(f"ws://127.0.0.1:{gateway.port}{path}", proxy=None, **options):
            pass
    return caught.value.response.status_code


async def test_the_unauthenticated_of_an_address_are_bounded():
    async with (
        running_gateway(max_unauthenticated_per_address=2) as (gateway, _),
        client_of(gateway) as one,
        client_of(gateway),
    ):
        assert await status_of(gateway) == 503
        await one.login("alice")
        async with client_of(gateway):
            pass


async def test_forwarded_addresses_count_only_from_trusted_proxies():
    async with running_gateway(max_unauthenticated_per_address=1, trusted_proxies=["127.0.0.0/8"]) as (
        gateway,
        _,
    ):
        url = f"ws://127.0.0.1:{gateway.port}/ws"

        def forwarded(value):
            return {"additional_headers": {"X-Forwarded-For": value}}

        async with ws_connect(url, proxy=None, **forwarded("192.0.2.1")), client_of(gateway):
            assert (
                await status_of(gateway, **forwarded("192.0.2.9, 192.0.2.1")) == 503
            )  # the first is made up
            async with ws_connect(url, proxy=None, **forwarded("192.0.2.2, 127.0.0.9")):
                pass
    async with running_gateway(max_unauthenticated_per_address=1) as (gateway, _), client_of(gateway):
        assert await status_of(gateway, additional_headers={"X-Forwarded-For": "192.0.2.1"}) == 503


async def raw_status(gateway, *lines):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write("\r\n".join([*lines, "Host: x", "", ""]).encode())
    async with asyncio.timeout(5):
        status = (await reader.readline()).split()[1]
        await reader.read(300)
    writer.close()
    return int(status)


async def test_handshakes_by_hand():
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    version = "Sec-WebSocket-Version: 13"
    async with running_gateway() as (gateway, _):
        firefox = ("GET /ws HTTP/1.1", "Connection: keep-alive, Upgrade", "Upgrade: websocket", key, version)
        assert await raw_status(gateway, *firefox) == 101
        assert await raw_status(gateway, "GET /ws HTTP/1.1") == 426
        assert await raw_status(gateway, *firefox[:3], key, "Sec-WebSocket-Version: 12") == 426
        assert await raw_status(gateway, *firefox[:3], version) == 400
        assert await raw_status(gateway, "GET / HTTP/1.1") == 404
        assert await raw_status(gateway, "POST /ws HTTP/1.1") == 400


async def test_too_big_arrives_as_1009_while_the_peer_still_sends():
    async with running_gateway(max_frame_bytes=1024) as (gateway, _), client_of(gateway, "alice") as client:
        sending = asyncio.ensure_future(client.ws.send("x" * 8_000_000))
        assert (await client.closed())[0] == 1009
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_stop_answers_what_was_admitted_and_says_when_to_come_back():
    async with (
        running_gateway(manual=True) as (gateway, engine),
        client_of(gateway, "alice") as alice,
        client_of(gateway) as stranger,
    ):
        await alice.post("@bob", 1, "k")
        await engine.arrived(1)
        port = gateway.port
        stopping = asyncio.ensure_future(gateway.drain(5))
        ended = asyncio.ensure_future(stranger.closed())
        await asyncio.sleep(0)
        with pytest.raises(OSError):
            await Outsider.connect(f"ws://127.0.0.1:{port}/ws")
        assert not ended.done()
        gateway.tell([told(message("alice|bob", 1, "alice"), engine.sent[0][0], "k", "alice")])
        assert (await alice.reply("k"))["type"] == "ack"
        code, reason = await alice.closed()
        assert code == 1012
        assert int(reason.removeprefix("retry_after_ms=")) > 0
        assert (await ended)[0] == 1012
        await stopping


async def test_a_stop_does_not_wait_for_ever():
    async with running_gateway(manual=True) as (gateway, engine), client_of(gateway, "alice") as alice:
        await alice.post("@bob", 1, "k")
        await engine.arrived(1)
        async with asyncio.timeout(5):
            await gateway.drain(0.3)
        assert (await alice.closed())[0] == 1012


async def test_a_connection_closed_during_its_login_is_logged_out_when_the_engine_is_done():
    async with running_gateway() as (gateway, engine), client_of(gateway) as client:
        engine.gate = asyncio.Event()
        await client.send("login", {"token": "alice", "device_id": "d1"})
        await engine.waiting.wait()
        (session,) = gateway.sessions
        gateway.replace(session)
        assert (await client.closed())[0] == 4409
        assert gateway.topics == {}
        assert engine.logouts == [session]
        engine.logged_out.clear()
        engine.gate.set()
        async with asyncio.timeout(5):
            await engine.logged_out.wait()
        assert gateway.topics == {}


@pytest.mark.parametrize("early", [1, 450, 600])  # bytes: a flush at the first, the fourth, the fifth frame
async def test_events_to_a_slow_consumer_reach_the_others(monkeypatch, early):
    """An event to many passes the bytes gathered at most, and one of them does not read."""
    monkeypatch.setattr(fanout, "EARLY_BYTES", early)
    async with (
        running_gateway(manual=True, outbound_buffer_bytes=65536) as (gateway, _),
        client_of(gateway, "alice") as alice,
        client_of(gateway, "bob") as bob,
        client_of(gateway, "carol") as carol,
    ):
        for connection in gateway.sessions.values():
            gateway.subscribe(connection, "#g")
        slow = next(c for c in gateway.sessions.values() if c.user == "alice")
        refusals = [False]
        monkeypatch.setattr(
            Outbox, "flush", lambda box: refusals.pop() if refusals and box is slow.outbox else flush(box)
        )
        events = [("joined", "dave"), ("left", "dave")] * 3
        gateway.tell([told(GroupChanged("#g", "g", "open", "bob", 3, 0, 1, tuple(events)))])
        assert slow.closed
        monkeypatch.setattr(Outbox, "flush", flush)
        for client in (bob, carol):
            for event, user in events:
                data = (await client.push("group_event"))["data"]
                assert (data["event"], data["user"]) == (event, user)
        assert (await alice.closed())[0] == 4430


async def test_a_connection_that_cannot_be_written_to_costs_the_others_nothing(monkeypatch):
    async with (
        running_gateway(manual=True) as (gateway, _),
        client_of(gateway, "alice") as alice,
        client_of(gateway, "bob") as bob,
    ):
        broken = next(c for c in gateway.sessions.values() if c.user == "alice")

        def fail(box):
            if box is broken.outbox:
                raise RuntimeError("broken on purpose")
            return flush(box)

        monkeypatch.setattr(Outbox, "flush", fail)
        gateway.tell([told(message(f"{user}|carol", 1, "carol")) for user in ("alice", "bob")])
        assert (await bob.push("message"))["data"]["seq"] == 1
        monkeypatch.setattr(Outbox, "flush", flush)
        with pytest.raises(Exception):  # noqa: B017 - cut off, by whatever name the library has for it
            await alice.push("message")
        await bob.barrier()


async def behind_a_command(engine, client, *envelopes, close=False, first=None):
    """In one write, so that all of it is read: a command that does not come back, and these behind it."""
    engine.gate = asyncio.Event()
    engine.waiting.clear()
    join = {"type": "join_group", "message_id": "j", "data": {"group": "#t"}}
    sent = [frames.encode(frames.TEXT, json.dumps(each).encode()) for each in (first or join, *envelopes)]
    if close:
        sent.append(frames.encode_close(1000))
    client.ws.transport.write(
        b"".join(frame[:1] + bytes((frame[1] | 0x80, 0, 0, 0, 0)) + frame[2:] for frame in sent)
    )
    await engine.waiting.wait()


async def test_sends_that_wait_too_long_behind_another_request_are_answered(monkeypatch):
    """Behind a command that does not come back a send has its answer within ten seconds, the command's time not
    included, also one that cannot be taken; everything else keeps its turn."""
    monkeypatch.setattr("hongyan.gateway.connection.DEFER_S", 0.2)

    def post(ref, **data):
        return {
            "type": "send_message",
            "message_id": ref,
            "data": {"to": "@bob", "content_type": "text", **data},
        }

    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        ack = {"type": "ack", "data": {"conversation": "@bob", "seq": 3}}
        again = {"type": "join_group", "message_id": "again", "data": {"group": "#u"}}
        await behind_a_command(
            engine, client, post("one", content=1), ack, post("bad"), again, post("two", content=2)
        )
        answers = [(await client.receive())["data"] for _ in range(3)]
        assert [(each["ref"], each["code"], each["retry"]) for each in answers] == [
            ("one", "unavailable", "backoff"), ("bad", "invalid_field", "never"), ("two", "unavailable", "backoff"),
        ]  # fmt: skip
        assert engine.acks == []
        engine.gate.set()
        assert [(await client.receive())["data"]["ref"] for _ in range(2)] == ["j", "again"]
        assert engine.acks == [("@bob", 3)]
        assert engine.sent == []
        await client.barrier()


@pytest.mark.parametrize("refusal", [None, refused("unavailable", "later")])
async def test_a_send_behind_a_slow_login_is_answered_whatever_comes_of_it(monkeypatch, refusal):
    """What is pushed meanwhile is held behind the login's answer, and dropped if it is refused; that answer is not."""
    monkeypatch.setattr("hongyan.gateway.connection.DEFER_S", 0.2)
    async with running_gateway() as (gateway, engine), client_of(gateway) as client:
        engine.refuse_login = refusal
        post = {"to": "@bob", "content_type": "text", "content": 1}
        login = {"type": "login", "message_id": "l", "data": {"token": "alice", "device_id": "d1"}}
        await behind_a_command(
            engine, client, {"type": "send_message", "message_id": "s", "data": post}, first=login
        )
        answer = (await client.receive())["data"]
        assert (answer["ref"], answer["code"]) == ("s", "unavailable")
        engine.gate.set()
        assert (await client.receive())["data"]["ref"] == "l"


@pytest.mark.parametrize("end", ["the peer closes", "4430", "the server stops"])
async def test_acknowledgements_that_were_read_hold_though_the_connection_ends(end):
    """Only a crash may set a cursor back, not a request before them that is still under way."""
    one = {"type": "ack", "data": {"conversation": "@bob", "seq": 500}}
    more = {"type": "ack", "data": {"acks": {"#t": 7}}}
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        (connection,) = gateway.sessions.values()
        behind = (one, {"type": "nonsense"}, {"type": "conversations"}, more)
        await behind_a_command(engine, client, *behind, close=end == "the peer closes")
        if end == "4430":
            connection.too_slow()
        elif end == "the server stops":
            stopping = asyncio.ensure_future(gateway.drain(5))
            await asyncio.sleep(0)
            engine.gate.set()
            await stopping
        await client.closed()
        assert engine.acks == [("@bob", 500), ("#t", 7)]
        assert engine.logouts == [connection.session]
        engine.gate.set()
        await asyncio.sleep(0)
        assert "conversations" not in engine.calls


async def test_a_hold_for_one_groups_answer_is_not_for_another_groups_news():
    """Alice's second device joins #x while the first waits for its own #y: nothing of the first has to wait."""
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        engine.gate = asyncio.Event()
        for kind, group in (("join_group", "#y"), ("create_group", "#z")):
            engine.waiting.clear()
            waiting = await client.send(kind, {"group": group})
            await engine.waiting.wait()
            joined = GroupChanged("#x", "", "open", "x", 2, 0, 1, (("joined", "alice"),))
            gateway.tell([told(joined), told(message("alice|bob", 1, "bob"), 0, "k", "bob")])
            assert [(await client.receive())["type"] for _ in range(2)] == ["group_event", "message"]
            engine.gate.set()
            assert (await client.reply(waiting))["data"]["group"] == group
            engine.gate.clear()


async def test_what_is_created_without_a_name_is_answered_before_its_event():
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        engine.gate = asyncio.Event()
        engine.waiting.clear()
        await client.send("create_group", {"name": "Team"})
        await engine.waiting.wait()
        gateway.tell([told(GroupChanged("#g17", "Team", "open", "alice", 1, 0, 1, (("joined", "alice"),)))])
        engine.gate.set()
        assert [(await client.receive())["type"] for _ in range(2)] == ["create_group", "group_event"]


async def test_joining_is_answered_before_what_the_group_says_next():
    async with running_gateway() as (gateway, engine), client_of(gateway, "alice") as client:
        engine.gate = asyncio.Event()
        joining = await client.send("join_group", {"group": "#t"})
        await engine.waiting.wait()
        gateway.tell([told(message("alice|bob", 1, "bob"), 0, "k", "bob")])
        assert (await client.receive())["type"] == "message", "nothing else waits for the answer"
        joined = GroupChanged("#t", "", "open", "x", 2, 0, 1, (("joined", "alice"),))
        gateway.tell([told(joined), told(message("#t", 1, "bob"), 0, "k", "bob")])
        engine.gate.set()
        received = [await client.receive() for _ in range(3)]
        assert [each["type"] for each in received] == ["join_group", "group_event", "message"]
        assert received[0]["data"]["ref"] == joining
        await client.barrier()


async def test_one_address_that_is_refused_again_and_again_takes_no_more_connections():
    """A connection that got its 503 and stays counts like one that has not logged in."""
    hello = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with running_gateway(max_unauthenticated_per_address=2) as (gateway, _), AsyncExitStack() as stack:
        answers = []
        for _number in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            stack.callback(writer.close)
            writer.write(hello)
            try:
                async with asyncio.timeout(5):
                    answers.append((await reader.readline())[9:12])
            except ConnectionError:
                answers.append(b"")
        assert answers == [b"101", b"101", b"503", b"503", b"", b""]


async def test_a_login_past_the_connections_rate_closes_4401():
    async with running_gateway(rate_limit=1, rate_burst=1) as (gateway, _), client_of(gateway) as client:
        assert (await client.refused("heartbeat"))["code"] == "unauthenticated"
        error = await client.refused("login", {"token": "alice", "device_id": "d1"})
        assert error["code"] == "rate_limited"
        assert (await client.closed())[0] == 4401


async def test_an_ack_of_many_conversations_counts_as_many_and_delays_what_follows_by_a_second(monkeypatch):
    async with running_gateway(rate_limit=1) as (gateway, engine), client_of(gateway, "alice") as client:
        (connection,) = gateway.sessions.values()
        await client.send("ack", {"acks": {f"@u{n}": 1 for n in range(10)}})
        await client.barrier()
        assert connection.wire.transport.is_reading()
        await client.send("ack", {"acks": {f"@u{n}": 1 for n in range(4_900)}})
        async with asyncio.timeout(5):
            while len(engine.acks) < 4_910:
                await asyncio.sleep(0.01)
        assert not connection.wire.transport.is_reading(), "240 requests' worth: past the burst of 200"
        monkeypatch.setattr(gateway.wheel, "_monotonic", lambda: time.monotonic() + limits.DEBT_S)
        gateway.wheel.turn()
        assert connection.wire.transport.is_reading(), "a send may be behind it"
