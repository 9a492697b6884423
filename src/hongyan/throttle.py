"""So many in a period for each key, in bounded memory. Times in seconds of a monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class Throttle:
    """GCRA (ITU-T I.371): `limit` at once, then one every `period_s / limit` seconds; a limit of 0 is off.

    At most `max_keys` keys are held. Past that those nearest to being forgiven go first, so filling the
    table with fresh keys does not free one that is at its limit.
    """

    def __init__(
        self,
        limit: int,
        period_s: float = 60.0,
        max_keys: int = 50_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step = period_s / limit if limit else 0.0
        self._period_s = period_s
        self._max_keys = max_keys
        self._monotonic = monotonic
        self._forgiven_at: dict[Hashable, float] = {}

    def take(self, key: Hashable) -> float:
        """Count one: 0.0; or the seconds until one would be allowed, and nothing is counted."""
        now = self._monotonic()
        at = max(self._forgiven_at.get(key, now), now) + self._step
        wait = at - now - self._period_s
        if wait > 1e-9:
            return wait
        self._forgiven_at[key] = at
        if len(self._forgiven_at) > self._max_keys:
            self._shrink(now)
        return 0.0

    def give_back(self, key: Hashable) -> None:
        """Undo one `take`."""
        if key in self._forgiven_at:
            self._forgiven_at[key] -= self._step

    def __len__(self) -> int:
        return len(self._forgiven_at)

    def _shrink(self, now: float) -> None:
        live = sorted((item for item in self._forgiven_at.items() if item[1] > now), key=lambda item: item[1])
        self._forgiven_at = dict(live[-(self._max_keys // 2) :])
