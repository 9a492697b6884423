"""Connections that are held, with their heartbeats: what one costs in memory."""

from __future__ import annotations

from typing import Any

from hongyan.bench.worker import Worker


async def idle(worker: Worker) -> dict[str, Any]:
    await worker.together("ready")
    await worker.connect_all()
    started = await worker.together("connected")
    await worker.measure(started)
    lost = sum(not client.open for client in worker.clients)
    if lost:
        worker.problem(f"{lost} connections did not last")
    return {}
