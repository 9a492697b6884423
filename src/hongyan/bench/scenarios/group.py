"""Fan-out: groups of `members`, the first of each talks to all."""

from __future__ import annotations

from typing import Any

from hongyan.bench.client import Client
from hongyan.bench.scenarios.load import Load, acked, count
from hongyan.bench.worker import Worker


async def group(worker: Worker) -> dict[str, Any]:
    plan = worker.plan

    def name(client: Client) -> str:
        return f"#{plan.prefix}g{client.index // plan.members}"

    def say(client: Client, stamp_ns: int) -> None:
        client.send(name(client).encode(), stamp_ns)

    async def create(client: Client) -> None:
        await client.ask("create_group", {"group": name(client), "join": "open"})

    async def join(client: Client) -> None:
        await client.ask("join_group", {"group": name(client)})

    await worker.connect_all()
    first = [client for client in worker.clients if client.index % plan.members == 0]
    await worker.together("connected")
    await worker.each(first, create, 20)
    await worker.together("created")
    await worker.each([client for client in worker.clients if client.index % plan.members], join, 50)
    load = Load(worker, first, say)
    started = await worker.together("joined")
    load.start()
    await worker.measure(started)
    await load.stop()
    return await count(worker, acked(worker) * (plan.members - 1))
