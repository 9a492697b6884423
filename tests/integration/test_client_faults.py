"""The client against a server that speaks the contract over real sockets, and misbehaves as networks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fake_server import FakeServer
from hongyan.client import (
    Client,
    Kicked,
    LoginRefused,
    Message,
    Replaced,
    RequestRefused,
    TooLarge,
    Unreachable,
)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as made:
        yield made


def client(server: FakeServer, **options: Any) -> Client:
    return Client(server.url, options.pop("token", "good"), "d1", rate=None, **options)


async def receive(of: Client, count: int) -> list[Message]:
    found: list[Message] = []
    async with asyncio.timeout(10):
        async for message in of.messages():
            found.append(message)
            if len(found) == count:
                break
    of.confirm()
    return found


async def contents(of: Client, count: int) -> list[Any]:
    return [message.content for message in await receive(of, count)]


async def test_sync_in_pages_then_pushes(server: FakeServer) -> None:
    for number in range(450):
        server.store("@bob", number)
    async with client(server) as alice:
        assert await contents(alice, 450) == list(range(450))
        await server.say("@bob", "live")
        assert await contents(alice, 1) == ["live"]
    assert len(server.of("sync_offline")) >= 3
    assert server.cursors["d1", "@bob"] == 451


async def test_a_second_run_on_the_device_gets_only_the_rest(server: FakeServer) -> None:
    server.store("@bob", 1)
    async with client(server) as alice:
        assert await contents(alice, 1) == [1]
    server.store("@bob", 2)
    async with client(server) as alice:
        assert await contents(alice, 1) == [2]
    async with client(server) as alice:  # nothing to sync: the first push is no gap
        await alice.wait_synced()
        await server.say("@bob", 3)
        assert await contents(alice, 1) == [3]
    assert server.of("history") == []


async def test_a_message_in_hand_when_the_application_fails_comes_again(server: FakeServer) -> None:
    server.store("@bob", 1)
    with pytest.raises(ZeroDivisionError):
        async with client(server) as alice:
            async for _ in alice.messages():
                raise ZeroDivisionError
    async with client(server) as alice:
        assert await contents(alice, 1) == [1]


async def test_leaving_counts_what_the_leaver_took_and_nothing_that_another_task_holds(
    server: FakeServer,
) -> None:
    for number in range(1, 6):
        server.store("@bob", number)
    async with client(server) as alice:
        async for message in alice.messages():
            if message.seq == 2:
                break
    assert server.cursors["d1", "@bob"] == 2

    async with client(server) as alice:
        holds = asyncio.Event()

        async def consume() -> None:
            async for message in alice.messages():
                if message.seq == 4:
                    holds.set()
                    await asyncio.Event().wait()  # never done with it

        consumer = asyncio.create_task(consume())
        await holds.wait()
    assert server.cursors["d1", "@bob"] == 3
    consumer.cancel()

    async with client(server) as alice, asyncio.TaskGroup() as group:
        group.create_task(receive(alice, 1))  # confirms by itself
    assert server.cursors["d1", "@bob"] == 4

    async with client(server) as alice:
        await asyncio.ensure_future(anext(alice.messages()))  # who knows whether it was looked at
    assert server.cursors["d1", "@bob"] == 4
    async with client(server) as alice:
        assert await contents(alice, 1) == [5]


async def test_doubles_and_left_out_pushes(server: FakeServer) -> None:
    server.double_pushes, server.leave_out = True, {3, 4, 9}
    async with client(server) as alice:
        await alice.wait_synced()
        for number in range(1, 11):
            await server.say("#team", number)
        assert await contents(alice, 10) == list(range(1, 11))
    assert server.of("history")


async def test_lost_connections_lose_and_double_nothing(server: FakeServer) -> None:
    async with client(server) as alice:
        await alice.wait_synced()
        got: list[Any] = []
        for round_ in range(3):
            await server.say("@bob", f"live {round_}")
            await server.drop_all()
            server.store("@bob", f"missed {round_}")
            got += await contents(alice, 2)
        assert got == [f"{kind} {round_}" for round_ in range(3) for kind in ("live", "missed")]


async def test_lost_acks_are_resent_with_retry_and_stored_once(server: FakeServer) -> None:
    server.lose_acks = 2
    async with client(server) as alice:
        acks = await asyncio.gather(*(alice.send("@bob", number) for number in range(20)))
    assert [item["content"] for item in server.log["@bob"]] == list(range(20))
    assert [ack.seq for ack in acks] == list(range(1, 21))
    assert acks[0].duplicate
    assert any(data.get("retry") for data in server.of("send_message"))


async def test_own_sends_are_not_messages(server: FakeServer) -> None:
    server.lose_acks = 1
    async with client(server) as alice:
        await alice.send("@bob", "mine")
        await server.say("@bob", "yours")
        assert await contents(alice, 1) == ["yours"]
    assert server.cursors["d1", "@bob"] == 2


async def test_refused_for_now_keeps_the_order_of_a_conversation(server: FakeServer) -> None:
    limited = {"code": "rate_limited", "text": "slow down", "retry": "backoff", "retry_after_ms": 20}
    server.refuse = [limited] * 3
    async with client(server, in_order=True) as alice:
        await asyncio.gather(*(alice.send("@bob", number) for number in range(10)))
    assert [item["content"] for item in server.log["@bob"]] == list(range(10))
    assert not any(data.get("retry") for data in server.of("send_message"))


async def test_refused_for_good_raises(server: FakeServer) -> None:
    server.refuse = [{"code": "unknown_user", "text": "no such user", "retry": "never"}]
    async with client(server) as alice:
        with pytest.raises(RequestRefused) as caught:
            await alice.send("@nobody", 1)
        assert caught.value.code == "unknown_user"
        assert (await alice.send("@bob", 1)).seq == 1


async def test_too_large_fails_that_send_only(server: FakeServer) -> None:
    server.max_frame = 1000
    async with client(server) as alice:
        with pytest.raises(TooLarge):
            await alice.send("@bob", "x" * 2000)
        assert (await alice.send("@bob", "small")).seq == 1


async def test_content_that_is_no_json(server: FakeServer) -> None:
    async with client(server) as alice:
        with pytest.raises(ValueError):
            await alice.send("@bob", float("nan"))
        with pytest.raises(ValueError):
            await alice.send("@bob", "\ud800")
        with pytest.raises(TypeError):
            await alice.send("@bob", object())
        assert alice.unacknowledged == 0


async def test_resync_fetches_what_no_push_told(server: FakeServer) -> None:
    async with client(server) as alice:
        await alice.wait_synced()
        await server.say("@bob", 1)
        server.store("@bob", 2)
        await server.push("resync", {})
        assert await contents(alice, 2) == [1, 2]


async def test_a_slow_application_still_sends_and_loses_nothing(server: FakeServer) -> None:
    async with client(server, capacity=10) as alice:
        await alice.wait_synced()
        for number in range(100):
            await server.say("@bob", number)
        assert (await alice.send("#team", "while all of that waits")).seq == 1
        assert await contents(alice, 100) == list(range(100))


@pytest.mark.parametrize(("code", "error"), [(4403, Kicked), (4409, Replaced)])
async def test_final_close_codes_reach_everybody_who_waits(
    server: FakeServer, code: int, error: type[Exception]
) -> None:
    async with client(server) as alice:
        await server.drop_all(code)
        with pytest.raises(error):
            await receive(alice, 1)
        with pytest.raises(error):
            await alice.send("@bob", 1)


async def test_restart_hint_is_honoured(server: FakeServer) -> None:
    async with client(server) as alice:
        events = alice.events()
        await anext(events)
        await server.drop_all(1012, "retry_after_ms=150")
        event = await anext(events)
        assert event.data["retry_in_s"] >= 0.15
        assert (await anext(events)).type == "connected"


async def test_a_refused_token_is_final_unless_there_is_a_new_one(server: FakeServer) -> None:
    with pytest.raises(LoginRefused) as caught:
        async with client(server, token="bad"):
            pass
    assert caught.value.error == "bad_token"
    tokens = iter(["bad", "good"])
    async with client(server, token=lambda: next(tokens)) as alice:
        assert alice.user_id == "alice"
    with pytest.raises(LoginRefused) as caught:
        async with client(server, token=lambda: "bad"):
            pass
    assert caught.value.error == "bad_token"


async def test_nobody_there(unused_tcp_port: int) -> None:
    with pytest.raises(Unreachable):
        async with Client(f"ws://127.0.0.1:{unused_tcp_port}/ws", "good", "d1", connect_timeout=0.3):
            pass


async def test_a_silent_server_is_given_up(server: FakeServer) -> None:
    server.heartbeat_ms = 100
    async with client(server) as alice:
        events = alice.events()
        await anext(events)
        server.mute = True
        assert (await anext(events)).type == "disconnected"
        server.mute = False
        assert (await anext(events)).type == "connected"
    assert server.of("heartbeat")


async def test_subscriptions_are_renewed(server: FakeServer) -> None:
    async with client(server) as alice:
        assert (await alice.presence(["@bob"], subscribe=True))["@bob"]["online"]
        await server.drop_all()
        await server.until(lambda: len(server.of("presence")) == 2)
    assert server.of("presence")[1] == {"users": ["@bob"], "subscribe": True}


async def test_a_closed_client_ends_its_iterators(server: FakeServer) -> None:
    alice = client(server)
    async with alice:
        pass
    assert [message async for message in alice.messages()] == []
    await alice.close()
