"""A day of a chat application in a minute: direct chats, groups of all sizes, presence, people who come and go."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from hongyan.bench.client import Client, Refused
from hongyan.bench.scenarios.load import Load, count
from hongyan.bench.worker import Worker

GROUP_PART = 0.2  # of the messages
FOLLOWED = 5  # users whose presence one follows
LEAVING = 0.01  # of the connections, in each second
SMALLEST = 2


def sizes(connections: int) -> list[int]:
    """Of the groups: the largest is everybody's tenth, the next a half of that, then a third … (Zipf)."""
    largest = max(SMALLEST, connections // 10)
    count = max(1, connections // 20)
    return [max(SMALLEST, largest // rank) for rank in range(1, count + 1)]


async def mixed(worker: Worker) -> dict[str, Any]:
    plan, rnd = worker.plan, worker.random
    addresses = [b"@" + plan.user(n).encode() for n in range(plan.connections)]
    groups: dict[int, list[bytes]] = {}  # by the index of a member of ours
    founders: dict[int, list[str]] = {}
    place = 0
    for number, size in enumerate(sizes(plan.connections)):
        name = f"#{plan.prefix}g{number}"
        members = [(place + n) % plan.connections for n in range(min(size, plan.connections))]
        place += size // 2 + 1
        founders.setdefault(members[0], []).append(name)
        for member in members:
            groups.setdefault(member, []).append(name.encode())

    def say(client: Client, stamp_ns: int) -> None:
        mine = groups.get(client.index)
        if mine and rnd.random() < GROUP_PART:
            client.send(rnd.choice(mine), stamp_ns)
            return
        to = rnd.randrange(plan.connections - 1)
        client.send(addresses[to + (to >= client.index)], stamp_ns)

    async def found(client: Client) -> None:
        for name in founders.get(client.index, ()):
            await client.ask("create_group", {"group": name, "join": "open"})

    async def join(client: Client) -> None:
        for name in groups.get(client.index, ()):
            await client.ask("join_group", {"group": name.decode()})
            client.ledger.last.setdefault(name, 0)  # who never hears of it has missed it
        followed = [rnd.choice(addresses).decode() for _ in range(FOLLOWED)]
        await client.ask("presence", {"users": followed, "subscribe": True})

    async def away(client: Client) -> None:
        client.leave()
        await worker.settle(lambda: not client.open)
        await asyncio.sleep(rnd.random())
        await worker.connect(client)
        await client.sync()
        worker.interval.counts["reconnects"] += 1

    async def come_and_go() -> None:
        leaving: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(1 / max(1.0, LEAVING * plan.count))
                client = rnd.choice(worker.clients)
                if client.open and not client.syncing and not client.leaving:
                    task = asyncio.create_task(away(client))
                    leaving.add(task)
                    task.add_done_callback(leaving.discard)
        except asyncio.CancelledError:
            if leaving:
                await asyncio.gather(*leaving)
            raise

    await worker.connect_all()
    await worker.together("connected")
    await worker.each(worker.clients, found, 20)
    await worker.together("founded")
    await worker.each(worker.clients, join, 50)
    load = Load(worker, worker.clients, say)
    started = await worker.together("joined")
    load.start()
    moving = asyncio.create_task(come_and_go())
    await worker.measure(started)
    moving.cancel()
    with suppress(asyncio.CancelledError, Refused):
        await moving
    await load.stop()
    return await count(worker, None)
