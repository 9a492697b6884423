"""The stop of the process: one deadline for all of it, whatever the disk does meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import structlog

EXIT_DEADLINE = 75  # EX_TEMPFAIL of sysexits.h: left at the deadline; the next start replays the journal

log = structlog.get_logger("hongyan")


REPEAT_S = 0.3  # a supervisor and a shell that both pass one stop on are not somebody who insists


class Stop:
    """The first signal calls `begun` and starts the clock: `seconds` later the process ends, from a thread,
    so also where the loop or a disk hangs from then on. The second one (not the first delivered twice) ends it at once.

    Signals are heard by the loop. One that hangs already, in a read that RocksDB does not return from, hears none,
    and then takes two for one that was delivered twice. A thread would hear no more: RocksDB's binding holds the
    interpreter's lock while it reads."""

    def __init__(
        self, seconds: float, begun: Callable[[], None], leave: Callable[[int], None] = os._exit
    ) -> None:
        self._seconds = seconds
        self._begun = begun
        self._leave = leave
        self._end = 0.0

    def on_signal(self, number: int) -> None:
        if self._end:
            if time.monotonic() - (self._end - self._seconds) < REPEAT_S:
                return
            log.warning("told to stop twice, the server ends", signal=signal.Signals(number).name)
            self._exit(128 + number)
            return
        self.begin()

    def begin(self) -> None:
        """Stop, for another reason than a signal. Idempotent."""
        if self._end:
            return
        self._end = time.monotonic() + self._seconds
        timer = threading.Timer(self._seconds, self._late)
        timer.daemon = True
        timer.start()
        self._begun()

    def left(self, share: float) -> float:
        """`share` of the whole, in seconds, or what is left of it."""
        whole = self._seconds * share
        return max(0.0, min(whole, self._end - time.monotonic())) if self._end else whole

    def _late(self) -> None:
        log.critical(
            "not stopped within shutdown_timeout_s, the server ends: the next start replays the journal",
            seconds=self._seconds,
        )
        self._exit(EXIT_DEADLINE)

    def _exit(self, code: int) -> None:
        sys.stderr.flush()
        self._leave(code)
