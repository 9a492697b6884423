"""Presence: who is online, told to who follows; going offline waits, so a reconnect shows no flicker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from hongyan.engine.sessions import Session, Sessions
from hongyan.errors import refused
from hongyan.link.base import PresenceState
from hongyan.protocol.names import direct_key
from hongyan.store.base import Store

OFFLINE_UNKNOWN = PresenceState(False, None)
ONLINE = PresenceState(True, None)
# So many at once: what goes on must not wait for ten thousand users who leave together (5 µs a push).
PUSHES = 2000

log = structlog.get_logger("hongyan.engine")


class Presence:
    """`visibility` is "all", "contacts" (users with a direct chat) or "off"; `delay_ms` the debounce."""

    def __init__(
        self, sessions: Sessions, store: Store, *, visibility: str, delay_ms: int, max_subscriptions: int
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._visibility = visibility
        self._delay_ms = delay_ms
        self._max_subscriptions = max_subscriptions
        self._watchers: dict[str, set[Session]] = {}
        self._leaving: dict[str, tuple[int, int]] = {}  # user -> (monotonic deadline, wall-clock last seen)
        # user -> what to tell, and whom still: changes that wait for their share of a tick
        self._changes: dict[str, tuple[PresenceState, list[Session]]] = {}
        # monotonic deadline, a session that was resumed, what it takes to be so
        self._resumed: deque[tuple[int, Session, dict[str, bool]]] = deque()
        self.push: Callable[[Sequence[int], Mapping[str, PresenceState]], None] = lambda sessions, states: (
            None
        )

    def ask(
        self, session: Session, addresses: Sequence[str], subscribe: bool | None
    ) -> dict[str, PresenceState]:
        """States by address. Raises Refused `limit_exceeded`; then nothing was subscribed."""
        users = [address[1:] for address in addresses]
        if subscribe:
            followed = session.subscriptions or set()
            if len(followed.union(users)) > self._max_subscriptions:
                raise refused(
                    "limit_exceeded", f"a connection follows {self._max_subscriptions} users at most"
                )
            session.subscriptions = followed
            for user in users:
                followed.add(user)
                self._watchers.setdefault(user, set()).add(session)
        elif subscribe is False:
            for user in users:
                self._unfollow(session, user)
        return {f"@{user}": self.state(user, session.user) for user in users}

    def resume(self, session: Session, followed: Mapping[str, bool], monotonic_ms: int) -> None:
        """The session follows these already, and takes them to be online or not. Where that is not so once everybody
        has had the time to come back, it is told."""
        if not followed:
            return
        session.subscriptions = set(followed)
        for user in followed:
            self._watchers.setdefault(user, set()).add(session)
        self._resumed.append((monotonic_ms + self._delay_ms, session, dict(followed)))

    def _tell_resumed(self, monotonic_ms: int, room: int) -> None:
        """A tick's share. Each session is told of the newest state, whatever was told meanwhile."""
        while self._resumed and self._resumed[0][0] <= monotonic_ms and room > 0:
            _, session, believed = self._resumed.popleft()
            room -= len(believed)
            if session.subscriptions is None or self._sessions.get(session.number) is not session:
                continue
            try:
                states = {
                    f"@{user}": state for user, online in believed.items()
                    if user in session.subscriptions and (state := self.state(user, session.user)).online != online
                }  # fmt: skip
            except Exception:  # a damaged row: as in `_may_hear`
                log.exception("cannot see who is online", user=session.user)
                continue
            if states:
                self.push([session.number], states)

    def state(self, user: str, viewer: str) -> PresenceState:
        if not self._visible(user, viewer):
            return OFFLINE_UNKNOWN
        if self._sessions.online(user) or user in self._leaving:
            return ONLINE
        row = self._store.user(user)
        return PresenceState(False, row.last_seen or None) if row is not None else OFFLINE_UNKNOWN

    def came(self, user: str) -> None:
        """The user's first device is here; after a flicker nobody is told."""
        if self._leaving.pop(user, None) is None:
            self._tell(user, ONLINE)

    def went(self, user: str, monotonic_ms: int, now_ms: int) -> None:
        """The user's last device is gone."""
        self._leaving[user] = (monotonic_ms + self._delay_ms, now_ms)

    def tick(self, monotonic_ms: int) -> None:
        """Tell of those whose delay is over (`_leaving` is in order of deadline), `PUSHES` at a time."""
        due, room = [], PUSHES
        for user, (deadline, last_seen) in self._leaving.items():
            if deadline > monotonic_ms or room <= 0:
                break
            due.append((user, last_seen))
            room -= 1 + len(self._watchers.get(user, ()))
        for user, last_seen in due:
            del self._leaving[user]
            self._change(user, PresenceState(False, last_seen))
        self._tell_resumed(monotonic_ms, PUSHES)
        self._work(PUSHES)

    def forget(self, session: Session) -> None:
        for user in list(session.subscriptions or ()):
            self._unfollow(session, user)

    def _unfollow(self, session: Session, user: str) -> None:
        if session.subscriptions is not None:
            session.subscriptions.discard(user)
        watchers = self._watchers.get(user)
        if watchers is not None:
            watchers.discard(session)
            if not watchers:
                del self._watchers[user]

    def _tell(self, user: str, state: PresenceState) -> None:
        """Now, unless others wait already or too many follow."""
        others = bool(self._changes)
        self._change(user, state)
        if not others:
            self._work(PUSHES)

    def _change(self, user: str, state: PresenceState) -> None:
        """Of several changes of one user only the last is told, to all."""
        self._changes.pop(user, None)
        if watchers := list(self._watchers.get(user, ())):
            self._changes[user] = (state, watchers)

    def _work(self, room: int) -> None:
        while room and self._changes:
            user = next(iter(self._changes))
            state, watchers = self._changes[user]
            now, later = watchers[:room], watchers[room:]
            if later:
                self._changes[user] = (state, later)
            else:
                del self._changes[user]
            room -= len(now)
            # Who has gone meanwhile, or follows no more, is not told.
            following = [each for each in now if user in (each.subscriptions or ())]
            sessions = [each.number for each in following if self._may_hear(user, each.user)]
            if sessions:
                self.push(sessions, {f"@{user}": state})

    def _may_hear(self, user: str, viewer: str) -> bool:
        """Never raises: a damaged row of one follower is no reason to tell nobody, or to end the process."""
        try:
            return self._visible(user, viewer)
        except Exception:
            log.exception("cannot see who may hear of presence", user=viewer)
            return False

    def _visible(self, user: str, viewer: str) -> bool:
        if self._visibility == "all" or user == viewer:
            return True
        if self._visibility == "off":
            return False
        return self._store.membership(viewer, direct_key(user, viewer)) is not None
