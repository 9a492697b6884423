"""An engine in another process, as a gateway asks it (`link.base.EngineApi`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hongyan.errors import Refused, refused
from hongyan.link import messages as m
from hongyan.link.base import ConversationsPage, HistoryPage, LoggedIn, PresenceState, SyncPage
from hongyan.link.uplink import UNAVAILABLE, Lost, Uplink


class RemoteEngine:
    """Sends and acknowledgements are messages in the stream: no task, no future. What waits for an answer when the
    engine dies is asked once more, where asking twice does no harm."""

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._entering: set[int] = set()  # sessions that are logging in

    async def _ask(self, session: int, method: str, *arguments: Any) -> Any:
        def make(call: int) -> m.Ask:
            return m.Ask(call, session, method, list(arguments))

        return await self._asking(make, m.ANSWERS[method])

    async def _asking(self, make: Any, kind: Any, again: bool = True) -> Any:
        try:
            return await self._uplink.call(make, kind)
        except Lost:
            if not again:
                raise Refused(UNAVAILABLE) from None
        try:
            return await self._uplink.call(make, kind)
        except Lost:  # twice: it may be what engines die of
            raise Refused(UNAVAILABLE) from None

    async def login(self, session: int, user: str, device: str, platform: str) -> LoggedIn:
        def make(call: int) -> m.Login:
            if session not in self._entering:  # it would replace the connection that came after it
                raise refused("unavailable", "the connection is gone")
            return m.Login(call, session, user, device, platform)

        self._entering.add(session)
        try:
            session_id, _ = await self._asking(make, m.LOGGED_IN)
            return LoggedIn(session_id, None)
        finally:
            self._entering.discard(session)

    def logout(self, session: int) -> None:
        self._entering.discard(session)
        self._uplink.logout(session)

    def send(self, session: int, ref: str, to: str, content_type: str, content: bytes, retry: bool) -> None:
        self._uplink.send(m.Send(session, ref, to, content_type, content, retry))

    def ack(self, session: int, address: str, seq: int) -> None:
        self._uplink.ack(session, address, seq)

    async def create_group(self, session: int, group: str | None, name: str, join: str) -> dict[str, Any]:
        def make(call: int) -> m.Ask:
            return m.Ask(call, session, "create_group", [group, name, join])

        # Without a name a second one would be another group.
        answer: dict[str, Any] = await self._asking(make, m.ANSWERS["create_group"], group is not None)
        return answer

    async def join_group(self, session: int, group: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask(session, "join_group", group)
        return answer

    async def leave_group(self, session: int, group: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask(session, "leave_group", group)
        return answer

    async def invite(self, session: int, group: str, users: Sequence[str]) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask(session, "invite", group, users)
        return answer

    async def sync(self, session: int, limit: int, cursors: Mapping[str, int], page: str | None) -> SyncPage:
        answer: SyncPage = await self._ask(session, "sync", limit, cursors, page)
        return answer

    async def history(
        self, session: int, conversation: str, before: int | None, after: int | None, limit: int
    ) -> HistoryPage:
        answer: HistoryPage = await self._ask(session, "history", conversation, before, after, limit)
        return answer

    async def conversations(self, session: int, limit: int, page: str | None) -> ConversationsPage:
        answer: ConversationsPage = await self._ask(session, "conversations", limit, page)
        return answer

    async def presence(
        self, session: int, users: Sequence[str], subscribe: bool | None
    ) -> dict[str, PresenceState]:
        answer: dict[str, PresenceState] = await self._ask(session, "presence", users, subscribe)
        self._uplink.follow(session, {who[1:]: state.online for who, state in answer.items()}, subscribe)
        return answer
