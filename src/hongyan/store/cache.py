"""A bounded cache in two generations: nearly LRU, at the cost of a dict look-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Holds between `size` and 2 × `size` of the entries used last. None is a value (a known absence).
    `young`, the newer generation, may be looked into directly, to save a call."""

    __slots__ = ("_old", "_size", "young")

    def __init__(self, size: int) -> None:
        self._size = max(1, size)
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K, default: V) -> V:
        young = self.young
        if key in young:
            return young[key]
        if key in self._old:
            value = self._old[key]
            self.put(key, value)
            return value
        return default

    def put(self, key: K, value: V) -> None:
        self.young[key] = value
        if len(self.young) >= self._size:
            self._old, self.young = self.young, {}

    def update(self, entries: Mapping[K, V]) -> None:
        """Put them all (`size` may be passed by as many, once)."""
        self.young.update(entries)
        if len(self.young) >= self._size:
            self._old, self.young = self.young, {}
