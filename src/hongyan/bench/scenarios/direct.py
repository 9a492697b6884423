"""Messages between random pairs: what a server keeps for a pair is cold, as it is in life."""

from __future__ import annotations

from typing import Any

from hongyan.bench.client import Client
from hongyan.bench.scenarios.load import Load, acked, count
from hongyan.bench.worker import Worker


async def direct(worker: Worker) -> dict[str, Any]:
    plan, below = worker.plan, worker.random.randrange
    addresses = [b"@" + plan.user(n).encode() for n in range(plan.connections)]

    def say(client: Client, stamp_ns: int) -> None:
        to = below(plan.connections - 1)
        client.send(addresses[to + (to >= client.index)], stamp_ns)  # anybody but itself

    await worker.connect_all()
    load = Load(worker, worker.clients, say)
    started = await worker.together("connected")
    load.start()
    await worker.measure(started)
    await load.stop()
    return await count(worker, acked(worker))
