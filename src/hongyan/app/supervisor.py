"""Starts, watches and restarts the server's processes. The supervisor has no event loop and no thread: it forks.

A child lives as long as its lifeline, whose other end only the supervisor has: closing that, or dying, tells the
child to stop. On it the child says, once, that it is up.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import structlog

from hongyan.stopping import EXIT_DEADLINE, REPEAT_S

FIRST_DELAY_S = 0.05  # before a child is started again; doubled each time it dies soon
MAX_DELAY_S = 1.0
SOON_S = 10.0
MAX_FAILURES = 5  # starts, one after the other, that came to nothing: then it is no use
GRACE_S = 1.0  # of a child that is past the deadline it keeps itself
# A child that ends with one of these has said why, and would say so again: could not start, wrong settings, storage
# failed, stopped too late.
FINAL = {1, 2, os.EX_IOERR, EXIT_DEADLINE}
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}

log = structlog.get_logger("hongyan")

ENGINE = -1  # the slot of the engine; gateways have those from 0 on


class Child(NamedTuple):
    slot: int
    lifeline: socket.socket
    born: float
    deaths: int  # of those before it in its slot, each soon
    failures: int  # of those, without ever being up

    @property
    def name(self) -> str:
        return "engine" if self.slot == ENGINE else f"gateway-{self.slot + 1}"


def say_up(lifeline: socket.socket) -> None:
    """In the child: its start has succeeded."""
    with suppress(OSError):
        lifeline.send(b"up")


def when_told(lifeline: socket.socket, stop: Callable[[], None]) -> None:
    """In the child, on its event loop: call `stop` once the supervisor says so or is gone."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        loop.remove_reader(lifeline)  # an end stays readable
        stop()

    loop.add_reader(lifeline, told)


def _said_up(lifeline: socket.socket) -> bool:
    try:
        return bool(lifeline.recv(8, socket.MSG_DONTWAIT))
    except OSError:
        return False


class Supervisor:
    """`engine(lifeline)` and `gateway(slot, number, lifeline)` run in the child and return its exit code; `number` is
    never given twice."""

    def __init__(
        self, engine: Callable[[socket.socket], int], gateway: Callable[[int, int, socket.socket], int],
        workers: int, timeout_s: float,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._gateway = gateway
        self._workers = workers
        self._timeout_s = timeout_s
        self._children: dict[int, Child] = {}  # by process id
        self._due: dict[
            int, tuple[float, int, int]
        ] = {}  # slot -> when it is to be started, `deaths`, `failures`
        self._numbers = 0
        self._stopping_since = 0.0
        self._code = 0

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or until a child cannot go on. Returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.collect()
        gc.freeze()  # the pages of what is loaded stay shared
        for slot in range(ENGINE, self._workers):
            self._start(slot)
        while self._children or self._due:
            found = signal.sigtimedwait(_SIGNALS, self._patience())
            self._reap()
            if found is not None and found.si_signo != signal.SIGCHLD:
                self._on_signal(found.si_signo)
            now = time.monotonic()
            if self._stopping_since and now > self._stopping_since + self._timeout_s + GRACE_S:
                log.critical("processes do not stop, they are ended", processes=len(self._children))
                self._code = self._code or EXIT_DEADLINE
                self._kill()
            for slot in [slot for slot, (at, _, _) in self._due.items() if at <= now]:
                _, deaths, failures = self._due.pop(slot)
                self._start(slot, deaths, failures)
        return self._code

    def _patience(self) -> float:
        """Seconds until something is due."""
        now = time.monotonic()
        due = [at for at, _, _ in self._due.values()]
        if self._stopping_since:
            due.append(self._stopping_since + self._timeout_s + GRACE_S + 0.01)
        return max(0.0, min(due, default=now + 3600) - now)

    def _on_signal(self, number: int) -> None:
        if not self._stopping_since:
            log.info("stopping", signal=signal.Signals(number).name)
            self._stop(0)
        elif time.monotonic() - self._stopping_since > REPEAT_S:
            log.warning("told to stop twice, the server ends", signal=signal.Signals(number).name)
            self._code = 128 + number
            self._kill()

    def _stop(self, code: int) -> None:
        """Gently, with `code` in the end. All at once: the engine waits for its gateways by itself."""
        self._code = self._code or code
        if self._stopping_since:
            return
        self._stopping_since = time.monotonic()
        self._due.clear()
        for child in self._children.values():
            child.lifeline.close()

    def _kill(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._ended(child, pid, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, pid: int, code: int) -> None:
        """`code` below 0: the signal that ended it."""
        if self._stopping_since:
            if code > 0:
                self._code = self._code or code
            return
        was_up = _said_up(child.lifeline)
        child.lifeline.close()
        if code in FINAL:
            log.critical("a process cannot go on, the server ends", ended=child.name, code=code)
            self._stop(code)
            return
        now = time.monotonic()
        deaths = child.deaths + 1 if now - child.born < SOON_S and code else 0  # (0: told to by somebody)
        failures = 0 if was_up else child.failures + 1
        if failures >= MAX_FAILURES:
            log.critical("a process dies again and again, the server ends", ended=child.name, code=code)
            self._stop(code if code > 0 else 128 - code)
            return
        delay = min(FIRST_DELAY_S * 2 ** min(deaths, 10), MAX_DELAY_S)
        log.error("a process died, it is started again", ended=child.name, pid=pid, code=code, delay_s=delay)
        self._due[child.slot] = (now + delay, deaths, failures)

    def _start(self, slot: int, deaths: int = 0, failures: int = 0) -> None:
        if slot != ENGINE:
            self._numbers += 1
        ours, its = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            its.close()
            self._children[pid] = Child(slot, ours, time.monotonic(), deaths, failures)
            return
        code = os.EX_SOFTWARE
        try:
            for child in self._children.values():  # else they would outlive the supervisor with this one
                child.lifeline.close()
            ours.close()
            code = self._engine(its) if slot == ENGINE else self._gateway(slot, self._numbers, its)
        except BaseException:
            log.exception("a process failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
