"""Passwords: argon2id (RFC 9106) in two threads, the same work whether or not the user exists."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from hongyan.errors import refused

MIN_BYTES, MAX_BYTES = 8, 256
_THREADS = 2
_MAX_WAITING = 64  # each takes about 50 ms and 64 MiB; past this the answer is `busy`


class Passwords:
    """Hash and verify off the event loop."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._pool = ThreadPoolExecutor(_THREADS, "argon2")
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """Raises Refused `busy`."""
        return str(await self._run(self._hasher.hash, password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """False for a wrong password and for a user without one (`stored` None or ""), after equal work.
        Raises Refused `busy`."""
        if self._nobody is None:
            self._nobody = await self.hash(secrets.token_hex(16))
        matches = await self._run(self._matches, stored or self._nobody, password)
        return bool(stored) and bool(matches)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: object, *values: str) -> object:
        if self._waiting >= _MAX_WAITING:
            raise refused("busy", "too many passwords are being checked", retry_after_ms=1000)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *values)  # type: ignore[arg-type]
        finally:
            self._waiting -= 1
