"""The duplicate window's settings may change from one start to the next, crashes included."""

from __future__ import annotations

import asyncio

import pytest

from outsider import Outsider
from server_process import ServerProcess

pytestmark = pytest.mark.slow


async def test_a_changed_window_holds_from_its_start_and_survives_a_crash(server_factory):
    server: ServerProcess = server_factory(
        rate_limit=0, dedup_window_messages=5, store_sync_interval_ms=50, store_flush_interval_ms=20
    )

    async def client_of() -> Outsider:
        client = await Outsider.connect(server.url)
        await client.login(server.token("a"))
        return client

    async def resend(client: Outsider, key: str) -> tuple[int, bool]:
        data = (await client.say("@a", key, key))["data"]
        return data["seq"], data["duplicate"]

    client = await client_of()
    for n in range(10):
        await client.say("@a", f"k{n}", f"k{n}")
    assert await resend(client, "k9") == (10, True)
    assert await resend(client, "k0") == (11, False), "the window is five messages"
    await client.close()
    server.settings["dedup_window_messages"] = 1000
    assert await asyncio.to_thread(server.terminate) == 0
    await asyncio.to_thread(server.start)
    client = await client_of()
    assert await resend(client, "k9") == (10, True)
    assert await resend(client, "k1") == (12, False), "forgotten is forgotten"
    for n in range(10, 30):
        await client.say("@a", f"k{n}", f"k{n}")
    assert await resend(client, "k1") == (12, True), "and now it is a thousand"
    client.abort()
    await asyncio.to_thread(server.restart)  # kill -9: a part is folded again
    client = await client_of()
    assert await resend(client, "k1") == (12, True)
    server.settings["dedup_window_messages"] = 5
    client.abort()
    await asyncio.to_thread(server.restart)
    client = await client_of()
    for n in range(30, 36):
        await client.say("@a", f"k{n}", f"k{n}")
    assert await resend(client, "k1") == (39, False), "and five again"
    await client.close()
