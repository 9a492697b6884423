"""The engine: what gateways ask (`EngineApi`), put together from its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from hongyan.config import Settings
from hongyan.engine.commands import GroupCommands, raise_rejected
from hongyan.engine.committer import Committer
from hongyan.engine.cursors import CursorQueue
from hongyan.engine.gap import gap_after
from hongyan.engine.logins import Logins
from hongyan.engine.presence import Presence
from hongyan.engine.reads import Reader
from hongyan.engine.recovery import Recovered, recover
from hongyan.engine.sequencer import Sequencer
from hongyan.engine.sessions import Session, Sessions
from hongyan.engine.window import Window
from hongyan.errors import Refused, Unavailable, refused
from hongyan.ids import Snowflake
from hongyan.journal.base import Journal
from hongyan.link.base import (
    ConversationsPage,
    Gap,
    GatewayApi,
    HistoryPage,
    LoggedIn,
    PresenceState,
    Resumed,
    SyncPage,
)
from hongyan.metrics import Counters
from hongyan.protocol import records
from hongyan.store.base import Store

TICK_S = 0.1

log = structlog.get_logger("hongyan.engine")


class Engine:
    """One per process. `recover`, `open_window` and `start` in this order; `close` commits what was admitted."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        store: Store,
        snowflake: Snowflake,
        counters: Counters,
        *,
        now_ms: Callable[[], int],
        monotonic_ms: Callable[[], int],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._store = store
        self._snowflake = snowflake
        self._now_ms = now_ms
        self._monotonic_ms = monotonic_ms
        self._fatal = fatal
        self._counters = counters
        self._window = Window(settings.dedup_window_ms, settings.dedup_window_messages)
        self._sequencer = Sequencer(store, self._window)
        self._committer = Committer(
            journal, store, self._sequencer, counters, now_ms=now_ms, monotonic_ms=monotonic_ms,
            batch_records=settings.batch_records, batch_bytes=settings.batch_bytes,
            max_pending_bytes=settings.max_pending_bytes, fatal=fatal,
        )  # fmt: skip
        self._sessions = Sessions()
        self._cursors = CursorQueue(
            self._committer.submit, snowflake.next, now_ms, monotonic_ms, lambda: store.offset,
            lambda: self._committer.behind, settings.cursor_flush_interval_ms,
        )  # fmt: skip
        self._reader = Reader(store, self._cursors.acked, monotonic_ms)
        self._presence = Presence(
            self._sessions, store, visibility=settings.presence, delay_ms=settings.presence_offline_delay_ms,
            max_subscriptions=settings.max_presence_subscriptions,
        )  # fmt: skip
        self._logins = Logins(
            settings, self._sessions, store, self._committer.submit, self._cursors.flush_user, snowflake, counters,
            now_ms,
        )  # fmt: skip
        self._commands = GroupCommands(
            settings, store, self._committer.submit, snowflake, counters, now_ms, monotonic_ms
        )
        self._safe = 0  # the offset that the store keeps whatever happens
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ------------------------------------------------------------------------------------

    async def recover(self) -> Recovered:
        """Replay what the store lacks. Raises DataDirectoryError. Call once, before `start`."""
        found = await recover(
            self._journal, self._store, self._sequencer, self._committer.fold, self._cursors.restore
        )
        self._committer.last_log_ms = found.last_log_ms
        return found

    async def open_window(self) -> None:
        """Have the settings' duplicate window hold from here on. Between `recover` and `start`; where the disk is
        full, the next checkpoint does it."""
        if not self._window_is_stale:
            return
        log_ms = max(self._now_ms(), self._committer.last_log_ms)
        try:
            entry = await self._journal.append([self._window_record()], log_ms)
        except (Unavailable, Refused) as error:
            log.warning(
                "cannot write the duplicate window's figures, the next checkpoint does", error=str(error)
            )
            return
        self._committer.last_log_ms = log_ms
        self._committer.fold(entry)

    @property
    def _window_is_stale(self) -> bool:
        """No record states the figures, or others are due; or stating them again lets the journal be trimmed further: up to
        it, or because log time, on which the window runs, goes on only with records."""
        window, due = self._window, (self._settings.dedup_window_ms, self._settings.dedup_window_messages)
        return (
            not window.newest_note
            or not window.holds(*due)
            or self._journal.last > window.newest_note
            or window.has_passed(self._now_ms())
        )

    def _window_record(self) -> records.DedupWindow:
        settings = self._settings
        return records.DedupWindow(
            self._snowflake.next(), self._now_ms(), settings.dedup_window_ms, settings.dedup_window_messages,
        )  # fmt: skip

    def start(self, gateway: GatewayApi) -> None:
        self._committer.gateway = gateway
        self._gateway = gateway
        self._presence.push = gateway.presence
        self._committer.start()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._guard(self._tick_forever), name="engine-ticker"),
            loop.create_task(self._guard(self._note_forever), name="engine-acks"),
            loop.create_task(self._guard(self._move_forever), name="engine-cursors"),
            loop.create_task(self._guard(self._expire_forever), name="engine-expiry"),
            loop.create_task(self._guard(self._checkpoint_forever), name="engine-checkpoint"),
        ]

    @property
    def pending_bytes(self) -> int:
        """Admitted and not yet durable."""
        return self._committer.pending_bytes

    @property
    def cursors_held(self) -> int:
        """Cursors that the journal has and the rows have not."""
        return self._cursors.size

    @property
    def writable(self) -> bool:
        """Journal and store take what they are given, as far as is known."""
        return not self._committer.refusing and not self._store.refusing

    async def close(self) -> None:
        """Write cursors, commit what was admitted, stop. The journal and store stay open."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
            self._tasks = []
            with suppress(Refused):
                await self._cursors.note(all_seen=True)
        await self._committer.close()

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fatal(error)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._presence.tick(self._monotonic_ms())

    async def _note_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            with suppress(Refused):
                await self._cursors.note()

    async def _move_forever(self) -> None:
        """Apart from the noting of acknowledgements, which does not wait for rows."""
        while True:
            await asyncio.sleep(TICK_S)
            await self._cursors.move()

    async def _expire_forever(self) -> None:
        lag, loop = self._counters.loop_lag_seconds, asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            lag.observe(max(0.0, loop.time() - due))
            self._committer.expire()

    async def _checkpoint_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.store_sync_interval_ms / 1000)
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        """Make the store safe, then drop the journal's rows that neither it nor the window needs.

        After a crash the store stands at `offset` or later, and the window is rebuilt as it was there. So
        what it needs is asked before the store is synced: meanwhile it moves on, and needs less.
        """
        if self._window_is_stale or not self.writable:  # (also to learn that it takes writes again)
            try:
                await self._committer.submit(self._window_record())
            except Refused:  # a full disk: trim by the records there are
                pass
        offset, needed = self._store.offset, self._needed()
        if self._safe < offset:
            self._safe = await self._store.sync()
            if self._safe < offset:  # a full disk; at what is safe the window reached further back
                return
        upto = self._window.trimmable(offset if needed is None else min(offset, needed - 1))
        if upto >= self._journal.first:
            await self._journal.trim(upto)
        self._store.forget(self._journal.first - 1)

    def _needed(self) -> int | None:
        """The oldest offset that the window or the cursors in memory would be rebuilt from."""
        needed = (self._window.oldest_offset(self._committer.last_log_ms), self._cursors.needed)
        return min([offset for offset in needed if offset is not None], default=None)

    # -- accounts --------------------------------------------------------------------------------

    async def register(self, user: str, password_hash: str) -> None:
        """Create a user with a password. Raises Refused `already_exists`, `busy`, `unavailable`."""
        record = records.Register(self._snowflake.next(), self._now_ms(), user, password_hash)
        raise_rejected(await self._committer.submit(record))

    def password_hash(self, user: str) -> str | None:
        row = self._store.user(user)
        return row.password if row is not None else None

    async def login(self, session: int, user: str, device: str, platform: str) -> LoggedIn:
        number = await self._logins.remembered(session, user, device, platform)
        return LoggedIn(self._enter(session, user, device, number), self.groups(user))

    def _enter(self, session: int, user: str, device: str, device_number: int) -> str:
        new = Session(session, user, device, device_number, str(self._snowflake.envelope()))
        old = self._sessions.of(user, device)
        was_online = self._sessions.online(user)
        self._cursors.seen(user, device, self._now_ms())
        self._sessions.add(new)
        if old is not None:  # known until the gateway has handed over the acknowledgements that it had read
            self._gateway.replace(old.number)
            self._presence.forget(old)
            self._sessions.remove(old)
        if not was_online:
            self._presence.came(user)
        return new.session_id

    def resume(self, resumed: Resumed, same: bool) -> Sequence[str] | None:
        """See `link.base.ServingEngine`, as the next two."""
        user, device = resumed.user, resumed.device
        row, there = self._store.user(user), self._sessions.of(user, device)
        if there is not None and int(there.session_id) > int(resumed.session_id):
            self._gateway.replace(resumed.session)
            return None
        if row is None or device not in row.devices:
            return None
        number = row.devices[device].number
        session = Session(resumed.session, user, device, number, resumed.session_id)
        was_online = self._sessions.online(user)
        self._cursors.seen(user, device, self._now_ms())
        self._sessions.add(session)
        if there is not None:
            self._gateway.replace(there.number)
            self._presence.forget(there)
            self._sessions.remove(there)
        self._presence.resume(session, resumed.followed, self._monotonic_ms())
        if same and not was_online:
            self._presence.came(user)
        return self.groups(user)

    @property
    def offset(self) -> int:
        return self._store.offset

    def gap_after(self, offset: int) -> Gap | None:
        return gap_after(self._journal, self._store, offset)

    def groups(self, user: str) -> Sequence[str]:
        """Addresses of the groups the user is a member of, now."""
        found: list[str] = []
        after = ""
        while rows := self._store.memberships(user, after, groups=True):
            found.extend(key for key, row in rows if row.position)
            after = rows[-1][0]
        return found

    def logout(self, session: int) -> None:
        gone = self._sessions.get(session)
        if gone is None:
            self._logins.forget(session)
            return
        self._presence.forget(gone)
        self._sessions.remove(gone)
        self._cursors.seen(gone.user, gone.device, self._now_ms())
        if not self._sessions.online(gone.user):
            self._presence.went(gone.user, self._monotonic_ms(), self._now_ms())

    # -- messages --------------------------------------------------------------------------------

    def send(self, session: int, ref: str, to: str, content_type: str, content: bytes, retry: bool) -> None:
        user = (self._sessions.by_number.get(session) or self._session(session)).user
        now_ms = self._now_ms
        now = now_ms()
        if to[0] == "#":
            key = to
        else:
            peer = to[1:]
            key = f"{user}|{peer}" if user <= peer else f"{peer}|{user}"
        if retry and not self._committer.behind:
            # Before it is journaled: what is damaged costs this request, not the fold, which mostly finds it known then.
            self._store.find(user, key, ref)
        record = records.Send(self._snowflake.at(now), now, user, key, ref, content_type, content, retry)
        self._committer.admit(record, session, len(content), False, retry)  # (a keyword takes a slower call)

    def ack(self, session: int, address: str, seq: int) -> None:
        found = self._sessions.by_number.get(session) or self._session(session)
        user = found.user
        sigil = address[:1]
        if sigil == "@":
            peer = address[1:]
            key = f"{user}|{peer}" if user <= peer else f"{peer}|{user}"
        elif sigil == "#" and self._store.membership(user, address) is not None:
            key = address
        else:  # not a conversation of the user's
            return
        of = self._store.conversation(key)
        if of is None:
            return
        if seq > of.last_seq:  # clamped now: a message that comes later is not acknowledged by this
            seq = of.last_seq
        gathered = self._cursors.gathered.get(found.owner)
        if gathered is None:
            gathered = self._cursors.of(found.owner)
        if seq > gathered.get(key, 0):
            gathered[key] = seq

    def _session(self, number: int) -> Session:
        session = self._sessions.get(number)
        if session is None:
            raise refused("unauthenticated", "not logged in")
        return session

    # -- groups ----------------------------------------------------------------------------------

    async def create_group(self, session: int, group: str | None, name: str, join: str) -> dict[str, Any]:
        return await self._commands.create(self._session(session).user, group, name, join)

    async def join_group(self, session: int, group: str) -> dict[str, Any]:
        return await self._commands.join(self._session(session).user, group)

    async def leave_group(self, session: int, group: str) -> dict[str, Any]:
        return await self._commands.leave(self._session(session).user, group)

    async def invite(self, session: int, group: str, users: Sequence[str]) -> dict[str, Any]:
        return await self._commands.invite(self._session(session).user, group, users)

    # -- reads -----------------------------------------------------------------------------------

    async def sync(self, session: int, limit: int, cursors: Mapping[str, int], page: str | None) -> SyncPage:
        async with self._reader.place() as turn:
            return await self._reader.sync(turn, self._session(session), limit, cursors, page)

    async def history(
        self, session: int, conversation: str, before: int | None, after: int | None, limit: int
    ) -> HistoryPage:
        async with self._reader.place():
            return await self._reader.history(self._session(session), conversation, before, after, limit)

    async def conversations(self, session: int, limit: int, page: str | None) -> ConversationsPage:
        async with self._reader.place() as turn:
            return await self._reader.conversations(turn, self._session(session), limit, page)

    async def presence(
        self, session: int, users: Sequence[str], subscribe: bool | None
    ) -> dict[str, PresenceState]:
        try:
            return self._presence.ask(self._session(session), users, subscribe)
        except Refused as refusal:
            if refusal.error.code == "limit_exceeded":
                self._counters.hit("max_presence_subscriptions")
            raise
