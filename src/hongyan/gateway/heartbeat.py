"""One wheel for every deadline of every connection: silence, login, token expiry, an unanswered close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

TICK_S = 0.1

log = structlog.get_logger("hongyan.gateway")


class Timed(Protocol):
    """What the wheel turns. `bucket` belongs to the wheel."""

    bucket: int

    def on_deadline(self, now: float) -> float | None:
        """A deadline has come (or moved since). Returns the next one, None to leave the wheel."""


class Wheel:
    """Buckets of a tenth of a second. A deadline that moves is looked at when the old one comes, so a
    frame costs an assignment and no timer. `now` is the time of the last turn, in monotonic seconds."""

    __slots__ = ("_buckets", "_handle", "_loop", "_monotonic", "_slowed", "_tick", "each_turn", "now")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: dict[int, set[Timed]] = {}
        self._slowed: dict[Callable[[], None], float] = {}
        self.each_turn: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self.now = monotonic()
        self._tick = int(self.now / TICK_S)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._turn()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop = None

    def schedule(self, timed: Timed, deadline: float) -> None:
        """Call `on_deadline` at `deadline` (up to a tick later), instead of the one set before."""
        self.remove(timed)
        timed.bucket = max(int(deadline / TICK_S) + 1, self._tick + 1)
        self._buckets.setdefault(timed.bucket, set()).add(timed)

    def remove(self, timed: Timed) -> None:
        bucket = self._buckets.get(timed.bucket)
        if bucket is not None:
            bucket.discard(timed)
            if not bucket:
                del self._buckets[timed.bucket]

    def slow(self, resume: Callable[[], None], until: float) -> None:
        """Call `resume` once `until` has passed."""
        self._slowed[resume] = until

    def forget(self, resume: Callable[[], None]) -> None:
        self._slowed.pop(resume, None)

    def turn(self) -> None:
        """Serve every deadline up to now."""
        self.now = now = self._monotonic()
        tick = int(now / TICK_S)
        if tick - self._tick > len(self._buckets):  # after a standstill: only the buckets there are
            due = sorted(number for number in self._buckets if number <= tick)
        else:
            due = list(range(self._tick + 1, tick + 1))
        self._tick = tick
        for number in due:
            for timed in self._buckets.pop(number, ()):
                try:
                    deadline = timed.on_deadline(now)
                except Exception:
                    log.exception("a deadline failed")
                    deadline = now + 1
                if deadline is not None:
                    self.schedule(timed, deadline)
        for resume in [resume for resume, until in self._slowed.items() if until <= now]:
            self._slowed.pop(resume, None)  # one resumed before may have ended this one
            _guarded(resume)
        _guarded(self.each_turn)

    def _turn(self) -> None:
        try:
            self.turn()
        finally:  # whatever failed: without the next turn no deadline of any connection would come
            if self._loop is not None:
                self._handle = self._loop.call_later(TICK_S, self._turn)


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        log.exception("a turn of the wheel failed")
