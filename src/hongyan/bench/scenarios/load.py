"""What loads have in common: a window or a rate, the end, and who has heard how much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hongyan.bench.client import Client, now_ns
from hongyan.bench.worker import Worker

MOST_WAITING = 100_000  # sends of a process without an answer: past it an open loop sends no more
_PAUSE_S = 0.001


class Load:
    """`say` sends one message of a client's."""

    def __init__(self, worker: Worker, senders: list[Client], say: Callable[[Client, int], None]) -> None:
        self._worker = worker
        self._senders = senders
        self._say = say
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._worker.plan.rate:
            self._task = asyncio.get_running_loop().create_task(self._open_loop())
            return
        for client in self._senders:
            client.acked = self._next
            for _ in range(self._worker.plan.in_flight):
                self._next(client)

    async def stop(self) -> None:
        """Send no more, and wait for the answers."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for client in self._senders:
            client.acked = None
        worker = self._worker
        if not await worker.settle(lambda: not worker.waiting):
            worker.problem(f"{worker.waiting} sends were not answered")

    def _next(self, client: Client) -> None:
        if client.open and client.acked is not None:
            self._say(client, now_ns())

    async def _open_loop(self) -> None:
        """Whatever the answers: latency counts from when a message was due, so that a server that stands still is not
        flattered."""
        rate, began, count = self._worker.plan.rate, now_ns(), 0
        choose, interval_ns = self._worker.random.choice, 1e9 / self._worker.plan.rate
        while True:
            due = int((now_ns() - began) * rate / 1e9)
            if due > count and self._worker.waiting > MOST_WAITING:
                self._worker.interval.counts["not sent"] += due - count
                count = due
            for number in range(count, due):
                client = choose(self._senders)
                if client.open and not client.syncing:
                    self._say(client, began + int(number * interval_ns))
            count = max(count, due)
            await asyncio.sleep(_PAUSE_S)


async def count(worker: Worker, owed: int | None) -> dict[str, Any]:
    """After the load: whether all processes together got the pushes that they were `owed` for what was acknowledged to
    them. Where they did not, or None knows: who has heard how much of what, and how many were acknowledged."""

    async def barrier(client: Client) -> None:
        """Answered by the engine, behind every push that was told before."""
        if client.open:
            await client.ask("presence", {"users": []})

    await worker.together("answered")
    await worker.each(worker.clients, barrier, 500)
    worker.report_late()
    if owed is not None:
        got = worker.totals.get("pushed", 0) + worker.interval.counts["pushed"]
        if not await worker.together("counted", (owed, got)):
            return {}
    heard: dict[str, tuple[int, int, int]] = {}
    for client in worker.clients:
        for name, last in client.ledger.last.items():
            key = name.decode()
            if key[0] == "@":
                key = "|".join(sorted((client.user, key[1:])))
            low, high, number = heard.get(key, (last, last, 0))
            heard[key] = min(low, last), max(high, last), number + 1
    return {"heard": heard, "acked": acked(worker), "unanswered": worker.waiting}


def acked(worker: Worker) -> int:
    return worker.totals.get("acked", 0) + worker.interval.counts["acked"]
