"""What waits to be written to all connections together, bounded: the slowest pay for it.

Each connection is bounded by itself (`Outbox`), but ten thousand that stop reading at once are gigabytes
before any of them reaches its own limit. Nothing is counted as frames are written: connections are looked at
in turn, all of them within a second, and all at each tick while there is much.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Protocol

LOOKS = 10  # ticks of a tenth of a second for one round
FEW = 1000  # so many are looked at in each tick anyway


class Consumer(Protocol):
    @property
    def backlog(self) -> int:
        """Bytes that wait for it."""

    def too_slow(self) -> None:
        """Close it; asked again, abort it: only then what waits for it is gone."""


class Budget:
    """`consumers()` are the connections; `hit` is called for each that is closed. `waiting`: the bytes found by
    the last whole round."""

    def __init__(
        self, limit: int, consumers: Callable[[], Iterable[Consumer]], hit: Callable[[], None]
    ) -> None:
        self.waiting = 0
        self._limit = limit
        self._consumers = consumers
        self._hit = hit
        self._round: list[Consumer] = []  # still to be looked at
        self._step = FEW
        self._found: list[tuple[int, int, Consumer]] = []  # backlog, a tie-break, whose
        self._sum = 0

    def tick(self) -> None:
        if not self._round:
            self._round = list(self._consumers())
            self._step = max(FEW, -(-len(self._round) // LOOKS))
            self._found, self._sum = [], 0
        step = len(self._round) if 2 * self.waiting > self._limit else self._step
        look, self._round = self._round[:step], self._round[step:]
        for consumer in look:
            backlog = consumer.backlog
            if backlog:
                self._sum += backlog
                self._found.append((-backlog, id(consumer), consumer))
        if self._round and self._sum <= self._limit:
            return
        self._round = []
        self.waiting = self._sum
        if self._sum > self._limit:
            self._relieve()

    def _relieve(self) -> None:
        """Close the largest until the rest is within the limit."""
        found, self._found = self._found, []
        heapq.heapify(found)
        while found and self.waiting > self._limit:
            size, _, consumer = heapq.heappop(found)
            self.waiting += size
            self._hit()
            consumer.too_slow()
