"""A gateway on an ephemeral port over an engine that lives in the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from hongyan.config import Settings
from hongyan.errors import refused
from hongyan.gateway.server import Gateway
from hongyan.ids import Snowflake
from hongyan.link.base import ConversationsPage, HistoryPage, LoggedIn, PresenceState, SyncPage, Told
from hongyan.metrics import Counters
from hongyan.protocol.names import conversation_key
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import Send
from hongyan.protocol.state import Message


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def told(outcome: Outcome, session: int = 0, ref: str = "", user: str = "") -> Told:
    """What came of a send of `user`; `session` 0: nobody waits."""
    return session, Send(1, 1, user, "", ref, "text", b'""'), outcome


class Claims(NamedTuple):
    user: str
    expires_at_ms: int


class Verifier:
    """A token is its user; `!code` is refused with that code; `short` expires soon."""

    def verify(self, token: str) -> Claims:
        if token[:1] == "!":
            raise refused(token[1:], "refused")
        return Claims(token, now_ms() + (300 if token == "short" else 3_600_000))


class FakeEngine:
    """Answers at once, or (`manual`) leaves sends to the test. With a `gate`, async calls wait for it."""

    def __init__(self, manual: bool = False) -> None:
        self.gateway: Gateway | None = None
        self.manual = manual
        self.broken = False
        self.gate: asyncio.Event | None = None
        self.waiting = asyncio.Event()
        self.logged_out = asyncio.Event()
        self.refuse_login: Exception | None = None
        self.memberships: dict[str, list[str]] = {}
        self.users: dict[int, str] = {}
        self.sent: list[tuple[int, str, str, str, bytes, bool]] = []
        self.acks: list[tuple[str, int]] = []
        self.calls: list[str] = []
        self.logouts: list[int] = []
        self._came = asyncio.Condition()
        self._seq: dict[str, int] = {}
        self._pending: set[asyncio.Future[None]] = set()

    async def arrived(self, count: int) -> None:
        """Wait until so many sends have come."""
        async with asyncio.timeout(5), self._came:
            await self._came.wait_for(lambda: len(self.sent) >= count)

    async def _step(self, call: str) -> None:
        self.calls.append(call)
        if self.broken:
            raise RuntimeError("broken on purpose")
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()

    async def login(self, session: int, user: str, device: str, platform: str) -> LoggedIn:
        await self._step("login")
        self.calls.clear()
        if self.refuse_login is not None:
            raise self.refuse_login
        self.users[session] = user
        return LoggedIn(f"s{session}", self.memberships.get(user, []))

    def logout(self, session: int) -> None:
        self.logouts.append(session)
        self.logged_out.set()

    def send(self, session: int, ref: str, to: str, content_type: str, content: bytes, retry: bool) -> None:
        self.sent.append((session, ref, to, content_type, content, retry))
        notified = asyncio.ensure_future(self._notify())
        self._pending.add(notified)
        notified.add_done_callback(self._pending.discard)
        if not self.manual:
            assert self.gateway is not None
            user = self.users[session]
            key = conversation_key(user, to)
            seq = self._seq[key] = self._seq.get(key, 0) + 1
            stored = Message(key, seq, 100 + seq, now_ms(), user, ref, content_type, content)
            self.gateway.tell([told(stored, session, ref, user)])

    async def _notify(self) -> None:
        async with self._came:
            self._came.notify_all()

    def ack(self, session: int, address: str, seq: int) -> None:
        self.acks.append((address, seq))

    async def create_group(self, session: int, group: str | None, name: str, join: str) -> dict[str, Any]:
        await self._step("create_group")
        return {"group": group}

    async def join_group(self, session: int, group: str) -> dict[str, Any]:
        await self._step("join_group")
        return {"group": group, "seq": 0, "first_seq": 1, "members": 1}

    async def leave_group(self, session: int, group: str) -> dict[str, Any]:
        await self._step("leave_group")
        return {"group": group}

    async def invite(self, session: int, group: str, users: Sequence[str]) -> dict[str, Any]:
        await self._step("invite")
        return {"group": group}

    async def sync(self, session: int, limit: int, cursors: Mapping[str, int], page: str | None) -> SyncPage:
        await self._step("sync")
        return SyncPage([], False, None)

    async def history(
        self, session: int, conversation: str, before: int | None, after: int | None, limit: int
    ) -> HistoryPage:
        await self._step("history")
        return HistoryPage([], False)

    async def conversations(self, session: int, limit: int, page: str | None) -> ConversationsPage:
        await self._step("conversations")
        return ConversationsPage([], False, None)

    async def presence(
        self, session: int, users: Sequence[str], subscribe: bool | None
    ) -> dict[str, PresenceState]:
        if self.broken:
            raise RuntimeError("broken on purpose")
        return {user: PresenceState(False, 12) for user in users}


@asynccontextmanager
async def running_gateway(manual: bool = False, **settings: Any) -> AsyncIterator[tuple[Gateway, FakeEngine]]:
    """A gateway that listens; at the end it is drained with the shortest deadline."""
    engine = FakeEngine(manual)
    gateway = Gateway(
        Settings(port=0, **settings),
        engine,
        Verifier(),
        Snowflake(1, now_ms),
        Counters(),
        now_ms,
        time.monotonic,
    )
    engine.gateway = gateway
    await gateway.start()
    try:
        yield gateway, engine
    finally:
        if engine.gate is not None:
            engine.gate.set()
        gateway.in_flight = 0
        await gateway.drain(0.5)
