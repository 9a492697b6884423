"""A bounded cache in two generations: nearly LRU, at the cost of a dict look-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Holds between `size` and 2 × `size` of the entries used last; an entry of None hides an older one.
    `young`, the newer generation, may be looked into directly, to save a call.

    A generation that is past is let go of bit by bit: to free 200,000 rows at once held the loop for 50 ms."""

    __slots__ = ("_gone", "_old", "_size", "young")

    def __init__(self, size: int) -> None:
        self._size = max(1, size)
        self.young: dict[K, V | None] = {}
        self._old: dict[K, V | None] = {}
        self._gone: dict[K, V | None] = {}

    def get(self, key: K) -> V | None:
        if key in self.young:
            return self.young[key]
        value = self._old.get(key)
        if value is not None:
            self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        self.young[key] = value
        self._turn(1)

    def update(self, entries: Mapping[K, V | None]) -> None:
        """Put them all (`size` may be passed by as many, once)."""
        self.young.update(entries)
        self._turn(len(entries))

    def refresh(self, entries: Mapping[K, V | None]) -> None:
        """Put those that are held."""
        for generation in (self.young, self._old):
            for key in entries.keys() & generation.keys() if generation else ():
                generation[key] = entries[key]

    def _turn(self, count: int) -> None:
        """After `count` have been put."""
        gone = self._gone
        if gone:
            for _ in range(min(2 * count, len(gone))):
                gone.popitem()
        if len(self.young) >= self._size:
            self._gone, self._old, self.young = self._old, self.young, {}
