"""Limits that a real server enforces, each set low enough to be met (protocol.md, "Defaults" and "Errors")."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from outsider import Outsider

pytestmark = pytest.mark.slow


@pytest.fixture
async def enter(server_factory):
    """`await enter(server, "alice")`: a logged-in client of any server."""
    opened = []

    async def log_in(server, user, device="d1", **options):
        client = await Outsider.connect(server.url, **options)
        opened.append(client)
        await client.login(server.token(user), device)
        return client

    yield log_in
    for client in opened:
        await client.close()


async def test_a_hostile_connection_does_not_starve_its_neighbour(server_factory, enter):
    """Frames that are dear to diagnose are read at a rate by their bytes: a neighbour is served many times
    between two of them. (Uncharged, one core would do little else.)"""
    server = server_factory()
    hostile, neighbour = await enter(server, "mallory"), await enter(server, "alice")
    deep = "[" * 32_000 + "]" * 32_000
    frame = (
        '{"type":"send_message","message_id":"%d","data":{"to":"@x","content_type":"text","content":'
        + deep
        + "}}"
    )
    served = 0
    over = asyncio.Event()

    async def ask() -> None:
        nonlocal served
        while not over.is_set():
            await neighbour.barrier()
            served += 1

    asking = asyncio.create_task(ask())
    sending = asyncio.create_task(send_all(hostile, [frame % n for n in range(8)]))
    for n in range(8):
        assert (await hostile.reply(str(n)))["data"]["code"] == "invalid_field"
        if n == 3:
            served = 0  # the burst is over
    over.set()
    await asyncio.gather(asking, sending)
    assert served > 10 * 4, f"{served} round trips beside 4 hostile frames"


async def send_all(client, frames):
    for frame in frames:
        await client.raw(frame)


async def test_a_flood_is_refused_then_closed_with_4429(server_factory, enter):
    server = server_factory(rate_limit=10, rate_burst=5)
    client = await enter(server, "alice")
    refused = 0

    async def flood() -> None:
        while True:
            await client.send("presence", {"users": []}, "x")
            await asyncio.sleep(0.02)  # the rate of the flood, which needs five seconds

    flooding = asyncio.create_task(flood())
    try:
        code, _ = await client.closed(timeout=20)
    finally:
        flooding.cancel()
    refused = sum(each["data"].get("code") == "rate_limited" for each in client.unread)
    assert code == 4429
    assert refused > 50
    assert all(
        each["data"]["retry_after_ms"] > 0
        for each in client.unread
        if each["data"].get("code") == "rate_limited"
    )


async def test_pings_past_the_rate_are_answered_more_slowly_and_all(server_factory, enter):
    server = server_factory(rate_limit=200, rate_burst=10)
    client = await enter(server, "alice")
    pongs = [await client.ws.ping(str(n).encode()) for n in range(100)]
    await asyncio.gather(*pongs)
    await client.barrier()


async def test_a_full_group_refuses_who_comes_next(server_factory, enter):
    server = server_factory(max_group_members=2)
    alice, bob, carol = [await enter(server, user) for user in ("alice", "bob", "carol")]
    await alice.ask("create_group", {"group": "#g"})
    await bob.ask("join_group", {"group": "#g"})
    assert (await carol.refused("join_group", {"group": "#g"}))["code"] == "group_full"
    await bob.ask("leave_group", {"group": "#g"})
    assert (await carol.ask("join_group", {"group": "#g"}))["members"] == 2


async def test_a_user_is_in_so_many_groups(server_factory, enter):
    server = server_factory(max_groups=2)
    alice, bob = await enter(server, "alice"), await enter(server, "bob")
    for group in ("#a", "#b"):
        await alice.ask("create_group", {"group": group})
    assert (await alice.refused("create_group", {"group": "#c"}))["code"] == "limit_exceeded"
    await bob.ask("create_group", {"group": "#c"})
    assert (await alice.refused("join_group", {"group": "#c"}))["code"] == "limit_exceeded"
    await alice.ask("leave_group", {"group": "#a"})
    await alice.ask("join_group", {"group": "#c"})


async def test_joins_and_group_creations_have_a_rate(server_factory, enter):
    server = server_factory(membership_changes_per_minute=2, group_creations_per_hour=1)
    alice = await enter(server, "alice")
    for _ in range(3):  # the same once more is no other
        await alice.ask("create_group", {"group": "#g"})
    late = await alice.refused("create_group", {"group": "#h"})
    assert (late["code"], late["retry_after_ms"] > 0) == ("rate_limited", True)
    await alice.ask("leave_group", {"group": "#g"})
    await alice.ask("join_group", {"group": "#g"})
    late = await alice.refused("leave_group", {"group": "#g"})
    assert (late["code"], late["retry_after_ms"] > 0) == ("rate_limited", True)


async def test_presence_subscriptions_have_a_limit(server_factory, enter):
    server = server_factory(max_presence_subscriptions=3)
    alice = await enter(server, "alice")
    users = ["@a", "@b", "@c", "@d"]
    assert (await alice.refused("presence", {"users": users, "subscribe": True}))["code"] == "limit_exceeded"
    await alice.ask("presence", {"users": users[:3], "subscribe": True})
    await alice.ask("presence", {"users": users[:1], "subscribe": False})
    await alice.ask("presence", {"users": users[3:], "subscribe": True})


@pytest.mark.parametrize("visible", ["off", "contacts"])
async def test_presence_can_be_hidden(server_factory, enter, visible):
    server = server_factory(presence=visible)
    alice, bob = await enter(server, "alice"), await enter(server, "bob")
    states = (await alice.ask("presence", {"users": ["@bob"]}))["states"]
    assert states["@bob"] == {"online": False, "last_seen": None}
    await bob.say("@alice", "hello")
    states = (await alice.ask("presence", {"users": ["@bob"]}))["states"]
    assert states["@bob"]["online"] is (visible == "contacts")


async def test_the_device_used_least_is_forgotten(server_factory, enter):
    """With room for two, a third device makes the first one start anew: at the furthest of the others."""
    server = server_factory(max_devices=2)
    bob = await enter(server, "bob")
    first = await enter(server, "alice", "one")
    await bob.say("@alice", 1)
    message = await first.push("message")
    assert message["data"]["seq"] == 1
    await first.close()
    for device in ("two", "three"):
        client = await enter(server, "alice", device)
        await client.close()
    again = await enter(server, "alice", "one")
    await again.barrier()
    await bob.say("@alice", 2)
    assert (await again.push("message"))["data"]["seq"] == 2
    assert [item["seq"] for item in await again.all_history("@bob")] == [1, 2]


async def test_an_eleventh_device_online_is_refused(server_factory, enter):
    server = server_factory(max_devices_online=2)
    for device in ("one", "two"):
        await enter(server, "alice", device)
    third = await Outsider.connect(server.url)
    answer = await third.refused("login", {"token": server.token("alice"), "device_id": "three"})
    assert answer["code"] == "limit_exceeded"
    assert (await third.closed())[0] == 4401
    await enter(server, "alice", "one")  # a device that is online already takes its own place


async def test_strangers_of_one_address_are_counted_by_what_the_proxy_says(server_factory):
    server = server_factory(max_unauthenticated_per_address=1, trusted_proxies="127.0.0.0/8")
    opened = [
        await Outsider.connect(server.url, additional_headers={"X-Forwarded-For": f"10.0.0.{n}"})
        for n in (1, 2)
    ]
    with pytest.raises(InvalidStatus) as refusal:
        await Outsider.connect(server.url, additional_headers={"X-Forwarded-For": "9.9.9.9, 10.0.0.1"})
    assert refusal.value.response.status_code == 503
    for client in opened:
        await client.close()


async def test_nobody_untrusted_names_its_own_address(server_factory):
    server = server_factory(max_unauthenticated_per_address=1)
    first = await Outsider.connect(server.url)
    with pytest.raises(InvalidStatus):
        await Outsider.connect(server.url, additional_headers={"X-Forwarded-For": "10.0.0.1"})
    await first.close()


async def test_an_acknowledgement_of_nothing_changes_nothing(server_factory, enter):
    server = server_factory()
    alice = await enter(server, "alice")
    await alice.raw(json.dumps({"type": "ack", "data": {"acks": {}}}))
    await alice.barrier()
    assert alice.unread == []
    refusal = await alice.refused("ack", {})
    assert (refusal["code"], refusal["field"]) == ("invalid_field", "data.acks")


async def test_a_page_nobody_gave_is_refused(server_factory, enter):
    server = server_factory()
    alice = await enter(server, "alice")
    for kind in ("conversations", "sync_offline"):
        answer = await alice.refused(kind, {"page": "nonsense"})
        assert (answer["code"], answer["field"]) == ("invalid_field", "data.page")


async def test_reads_wait_for_room_while_pushes_come(server_factory, enter):
    """Ten replies of up to 512 KiB are asked for at once; what is pushed meanwhile finds its place."""
    server = server_factory(rate_limit=0)
    alice, bob = await enter(server, "alice"), await enter(server, "bob")
    for n in range(20):
        await alice.say("@bob", f"{n}" + "x" * 50_000)
    await bob.barrier()
    bob.unread.clear()
    bob.ws.transport.pause_reading()
    refs = [await bob.send("history", {"conversation": "@alice", "limit": 20}) for _ in range(10)]
    for n in range(50):
        await alice.say("@bob", f"live {n}")
    bob.ws.transport.resume_reading()
    for ref in refs:
        assert (await bob.reply(ref))["type"] == "history"
    pushes = [await bob.push("message") for _ in range(50)]
    assert [push["data"]["seq"] for push in pushes] == list(range(21, 71))


async def test_every_limit_that_is_reached_is_counted(server_factory, enter):
    """protocol.md, "Limits": each with a metric."""
    server = server_factory(
        max_devices_online=1, max_devices=2, max_group_members=1, max_groups=1, max_presence_subscriptions=1,
        max_frame_bytes=1024, max_unauthenticated_per_address=2, group_creations_per_hour=0,
    )  # fmt: skip
    alice = await enter(server, "alice", "d1")
    with pytest.raises(AssertionError, match="limit_exceeded"):
        await enter(server, "alice", "d2")
    await alice.ask("create_group", {"group": "#g"})
    assert (await alice.refused("create_group", {"group": "#h"}))["code"] == "limit_exceeded"
    bob = await enter(server, "bob")
    assert (await bob.refused("join_group", {"group": "#g"}))["code"] == "group_full"
    await bob.refused("presence", {"users": ["@a", "@b"], "subscribe": True})
    await alice.raw("x" * 2000)
    assert (await alice.closed())[0] == 1009
    for device in ("d2", "d3"):
        again = await Outsider.connect(server.url)
        await again.login(server.token("alice"), device)
        await again.close()
    async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=20) as http:
        assert (await http.post("/api/v1/auth/login", content=b"x" * 20_000)).status_code == 413
        strangers = [await Outsider.connect(server.url) for _ in range(2)]
        with pytest.raises(InvalidStatus, match="503"):
            await Outsider.connect(server.url)
        for stranger in strangers:
            await stranger.close()
        said = (await http.get("/metrics")).text
    for limit in (
        "max_devices_online", "max_devices", "max_groups", "max_group_members", "max_presence_subscriptions",
        "max_frame_bytes", "http_body_bytes", "max_unauthenticated_per_address",
    ):  # fmt: skip
        assert f'hongyan_limit_hits_total{{limit="{limit}"}}' in said, limit
    for code in (1009, 4401, 1000):
        assert f'hongyan_closes_total{{code="{code}"}}' in said, code
