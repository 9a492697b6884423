"""Delivery cursors on their way to the journal.

An acknowledgement is a dict update on the session; about once a second what has gathered becomes one
`Cursors` record, so a crash sets a cursor back by a second at most (protocol.md, `ack`), and an
acknowledgement costs no fsync of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from hongyan.engine.sessions import Session
from hongyan.errors import Refused
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import Cursors

TICKS = 8  # a session's acknowledgements wait this many ticks (of 100 ms) at most
MAX_ENTRIES = 500  # acknowledgements in one record, and gathered on one session before it goes at once


class CursorQueue:
    """Sessions with acknowledgements to write, longest waiting first; also of connections that ended."""

    def __init__(self, submit: Callable[[Cursors], Awaitable[Outcome]], new_id: Callable[[], int]) -> None:
        self._submit = submit
        self._new_id = new_id
        self._dirty: dict[tuple[str, str], Session] = {}
        self._seen: dict[tuple[str, str], int] = {}
        # One writer at a time: a session has one place for what is being written (`flying_acks`).
        self._writing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._dirty) + len(self._seen)

    def ack(self, session: Session, conversation: str, seq: int) -> None:
        acks = session.acks
        if acks is None:  # a session that has some is queued already
            session.acks = {conversation: seq}
            self._dirty.setdefault((session.user, session.device), session)
        elif seq > acks.get(conversation, 0):
            acks[conversation] = seq

    def seen(self, user: str, device: str, at: int) -> None:
        """The device was used at `at` ms."""
        self._seen[user, device] = at

    def inherit(self, session: Session) -> None:
        """Give a new session of a device what its last one has not written yet."""
        old = self._dirty.get((session.user, session.device))
        if old is not None and old is not session:
            for acks in (old.flying_acks, old.acks):
                if acks:
                    session.add_acks(acks.items())
            self._dirty[session.user, session.device] = session

    async def flush(self, now: int, *, all_of_them: bool = False) -> None:
        """Write the share of one tick, or everything. Refusals keep what was gathered for the next time."""
        count = len(self._dirty) if all_of_them else len(self._dirty) // TICKS + 1
        keys = [key for key, _ in zip(self._dirty, range(count), strict=False)]
        seen_count = len(self._seen) if all_of_them else MAX_ENTRIES
        seen_keys = [key for key, _ in zip(self._seen, range(seen_count), strict=False)]
        seen = [(user, device, self._seen.pop((user, device))) for user, device in seen_keys]
        await self._write(keys, seen, now)

    async def flush_user(self, user: str, devices: Iterable[str], now: int) -> None:
        """Write what the user's devices have gathered: a new device starts where the furthest stands."""
        await self._write([(user, device) for device in devices], [], now)

    async def _write(self, keys: list[tuple[str, str]], seen: list[tuple[str, str, int]], now: int) -> None:
        async with self._writing:
            await self._write_alone(keys, seen, now)

    async def _write_alone(
        self, keys: list[tuple[str, str]], seen: list[tuple[str, str, int]], now: int
    ) -> None:
        while keys or seen:
            entries: list[tuple[str, str, str, int]] = []
            flying: list[Session] = []
            while keys and len(entries) < MAX_ENTRIES:
                session = self._dirty.pop(keys.pop(), None)
                if session is None:
                    continue
                if not session.acks:
                    session.acks = None
                    continue
                session.flying_acks, session.acks = session.acks, None
                flying.append(session)
                user, device = session.user, session.device
                entries.extend((user, device, key, seq) for key, seq in session.flying_acks.items())
            if not entries and not seen:
                break
            try:
                await self._submit(Cursors(self._new_id(), now, entries, seen))
            except Refused:
                for user, device, at in seen:
                    self._seen.setdefault((user, device), at)
                self._take_back(flying)
                return
            for session in flying:
                session.flying_acks = None
            seen = []

    def _take_back(self, flying: list[Session]) -> None:
        for session in flying:
            acks, session.flying_acks = session.flying_acks, None
            owner = self._dirty.setdefault((session.user, session.device), session)
            owner.add_acks((acks or {}).items())
