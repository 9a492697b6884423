"""Rates of rare requests (joins, group creations), kept per key in bounded memory."""

from __future__ import annotations

from collections.abc import Hashable

from hongyan.errors import refused


class Throttle:
    """`limit` events per `period_ms`, as a burst or spread out (GCRA, ITU-T I.371: one time a key).

    At most `max_keys` keys are remembered; past that, those nearest to a clean record go first.
    """

    def __init__(self, limit: int, period_ms: int, max_keys: int = 100_000) -> None:
        self._limit = limit
        self._period_ms = period_ms
        self._max_keys = max_keys
        self._full_at: dict[Hashable, float] = {}

    def take(self, key: Hashable, now_ms: int, what: str) -> None:
        """Count one event. Raises Refused `rate_limited` with `retry_after_ms`. A limit of 0 is off."""
        if not self._limit:
            return
        step = self._period_ms / self._limit
        full_at = max(self._full_at.get(key, 0.0), now_ms)
        wait = full_at + step - now_ms - self._period_ms
        if wait > 0:
            raise refused("rate_limited", f"too many {what}", retry_after_ms=int(wait) + 1)
        self._full_at[key] = full_at + step
        if len(self._full_at) > self._max_keys:
            self._forget(now_ms)

    def _forget(self, now_ms: int) -> None:
        live = {key: at for key, at in self._full_at.items() if at > now_ms}
        if len(live) > self._max_keys:
            live = dict(sorted(live.items(), key=lambda item: item[1])[len(live) // 2 :])
        self._full_at = live
