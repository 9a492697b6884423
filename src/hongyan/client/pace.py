"""A token bucket, so that a client stays below the server's rate limit instead of running into it. Pure."""

from __future__ import annotations


class Pace:
    """`rate` requests a second with a burst; `rate` None: no limit. Times are seconds of any steady clock."""

    def __init__(self, rate: float | None, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None

    def ready_at(self, now: float) -> float:
        """When the next request may go: `now` or later."""
        if self._rate is None:
            return now
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        # A rounding error must not make the caller wait for a time that it has reached.
        return now if self._tokens > 1 - 1e-6 else now + (1 - self._tokens) / self._rate

    def spend(self) -> None:
        if self._rate is not None:
            self._tokens -= 1
