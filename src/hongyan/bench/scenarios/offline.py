"""Messages to users who are away, who then come back and sync."""

from __future__ import annotations

import asyncio
from typing import Any

from hongyan.bench.client import Client
from hongyan.bench.scenarios.load import Load, acked, count
from hongyan.bench.worker import Failed, Worker


async def offline(worker: Worker) -> dict[str, Any]:
    """Every other user is away; each of those gets `messages` on average."""
    plan = worker.plan
    away = [client for client in worker.clients if client.index % 2]
    there = [client for client in worker.clients if not client.index % 2]
    others = [b"@" + plan.user(n).encode() for n in range(1, plan.connections, 2)]
    left = plan.messages * len(away)

    def say(client: Client, stamp_ns: int) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            client.send(worker.random.choice(others), stamp_ns)

    async def visit(client: Client) -> None:
        """A user exists, and a device starts, from the first login on."""
        await worker.connect(client)
        client.leave()
        await worker.settle(lambda: not client.open)

    async def come_back(client: Client) -> None:
        await worker.connect(client)
        await client.sync()

    await worker.each(away, visit, 50)
    await worker.each(there, worker.connect, 50)
    await worker.together("away")
    load = Load(worker, there, say)

    def remaining() -> int:
        return left + worker.waiting

    load.start()
    while (before := remaining()) > 0:
        if not await worker.settle(lambda before=before: remaining() < before):  # type: ignore[misc]
            raise Failed("sends to users who are away are not answered any more")
    await load.stop()
    sent = acked(worker)
    await worker.together("sent")
    await worker.measure_while(asyncio.create_task(worker.each(away, come_back, 50)))
    synced = worker.totals.get("synced", 0) + worker.interval.counts["synced"]
    worker.interval.counts["pushed"] += (
        synced - worker.totals.get("pushed", 0) - worker.interval.counts["pushed"]
    )
    return await count(worker, sent)
