"""A storm of logins: everybody comes back, so many at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from hongyan.bench.client import Client
from hongyan.bench.worker import Worker


async def connect(worker: Worker) -> dict[str, Any]:
    async def come(client: Client) -> None:
        await worker.connect(client, timed=True)

    await worker.together("ready")
    storm = asyncio.create_task(worker.each(worker.clients, come, worker.plan.in_flight))
    await worker.measure_while(storm)
    await worker.together("logged in")
    return {}
