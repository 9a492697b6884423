"""A share of the event loop for work that comes in masses and can wait: logins after a restart, catch-up reads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

LATEST_S = 60.0  # nobody is sent away for longer, however many ask (anybody may, and as often as they like)
_SMOOTHING = 0.1  # of a new measurement in a mean


class Share:
    """`await turn()` before each piece of work, `charge` what it took: with each turn of the loop as many pieces go on,
    in the order of their coming, as fit into `part` of the turn's length, or into `floor_s` where that is more.

    So a storm makes everybody else's turns longer by a part, not by its size; and where nothing else is to be done it
    has the whole loop, because the turns follow each other at once.
    """

    def __init__(
        self, monotonic: Callable[[], float], *, floor_s: float, part: float, piece_s: float
    ) -> None:
        """`piece_s`: what a piece is taken to cost until some have been charged."""
        self._monotonic = monotonic
        self._floor_s = floor_s
        self._part = part
        self._piece_s = piece_s
        self._every_s = piece_s  # between two pieces while some wait
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False
        self._turned = 0.0
        self._fit = self._left = self._pieces()  # pieces of this turn, and how many of them are left
        self._told = 0.0
        self.turns = 0  # of the loop, while pieces come

    @property
    def wait_s(self) -> float:
        """How long one that comes now would wait, about."""
        return len(self._waiting) * self._every_s

    def fits(self) -> bool:
        """Whether one more piece fits into this turn, which it then has."""
        if not self._turning:
            self._turning = True
            self._turned = self._monotonic()
            asyncio.get_running_loop().call_soon(self._next)
        if self._left <= 0 or self._waiting:
            return False
        self._left -= 1
        return True

    async def turn(self) -> None:
        """Wait until it is this piece's turn."""
        if self.fits():
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        await mine

    def charge(self, seconds: float) -> None:
        """A piece has taken so long."""
        self._piece_s += _SMOOTHING * (seconds - self._piece_s)

    def charge_too(self, seconds: float) -> None:
        """So long it took beside what it was charged already: the mean settles at the sum of both."""
        self._piece_s += _SMOOTHING * seconds

    def later(self) -> float:
        """Seconds after which one that is sent away may come back: behind those who wait, and those sent away before."""
        now = self._monotonic()
        self._told = min(max(self._told, now + self.wait_s) + self._every_s, now + LATEST_S)
        return self._told - now

    def _pieces(self, turn_s: float = 0.0) -> int:
        return max(1, int(max(self._floor_s, self._part * turn_s) / max(self._piece_s, 1e-6)))

    def _next(self) -> None:
        self.turns += 1
        now = self._monotonic()
        took, self._turned = now - self._turned, now
        done = self._fit - self._left
        if done and self._waiting:
            self._every_s += _SMOOTHING * (took / done - self._every_s)
        self._fit = self._left = self._pieces(took)
        while self._left and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was cancelled
                waiter.set_result(None)
                self._left -= 1
        self._turning = bool(done) or bool(self._waiting) or self._left < self._fit
        if self._turning:
            asyncio.get_running_loop().call_soon(self._next)
