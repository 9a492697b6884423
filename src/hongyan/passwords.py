"""Passwords: argon2id (RFC 9106) in two threads, the same work whether or not the user exists."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from hongyan.errors import refused

MIN_BYTES, MAX_BYTES = 8, 256
_THREADS = 2
_MAX_WAITING = 64  # each takes some 50 ms and, while it runs, 64 MiB; past this the answer is `busy`

T = TypeVar("T")


def check_password(value: object) -> str:
    """`value`, where it is a password: text of 8 to 256 bytes in UTF-8. Raises Refused `invalid_field`."""
    if not isinstance(value, str):
        raise refused("invalid_field", "a password is a string", "password")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:  # a lone surrogate
        raise refused("invalid_field", "a password is Unicode text", "password") from None
    if not MIN_BYTES <= size <= MAX_BYTES:
        raise refused("invalid_field", f"a password has {MIN_BYTES} to {MAX_BYTES} bytes", "password")
    return value


class Passwords:
    """Hash and verify off the event loop, at most `max_waiting` at a time."""

    def __init__(self, hasher: PasswordHasher | None = None, max_waiting: int = _MAX_WAITING) -> None:
        self._hasher = hasher or PasswordHasher()  # argon2-cffi's defaults: RFC 9106, low memory
        self._pool = ThreadPoolExecutor(_THREADS, "argon2")
        self._max_waiting = max_waiting
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """The hash to store, its salt and costs inside. Raises Refused `busy`."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """False for a wrong password and for a user without one (`stored` None or ""), after equal work.
        Raises Refused `busy`."""
        if self._nobody is None:
            self._nobody = await self.hash(secrets.token_hex(16))
        against = stored or self._nobody
        return await self._run(lambda: self._matches(against, password)) and bool(stored)

    def close(self) -> None:
        """Drops what has not begun. Idempotent."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._max_waiting:
            raise refused("busy", "too many passwords are being checked", retry_after_ms=1000)
        loop = asyncio.get_running_loop()
        self._waiting += 1
        future = self._pool.submit(work)
        # Counted until the thread is done, not until the asker is gone: a cancelled request leaves its
        # thread at work.
        future.add_done_callback(lambda done: self._done(loop, done))
        return await asyncio.wrap_future(future)

    def _done(self, loop: asyncio.AbstractEventLoop, future: Future[T]) -> None:
        try:
            loop.call_soon_threadsafe(self._leave)
        except RuntimeError:  # the loop is closed: the process ends
            pass

    def _leave(self) -> None:
        self._waiting -= 1
