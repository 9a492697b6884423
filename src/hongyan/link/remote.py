"""The gateway's side of the link: an engine in another process.

Sends and acknowledgements are messages in the stream: no task, no future. What is answered has a number; its answer
is taken by whoever waits for it before anything that follows it in the stream is told, because it may rest on it
(a login's groups).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from hongyan.errors import Refused, WireError, refused
from hongyan.link import messages as m
from hongyan.link.base import (
    ConversationsPage,
    GatewayApi,
    HistoryPage,
    LoggedIn,
    PresenceState,
    SyncPage,
)
from hongyan.link.base import Told as Outcomes
from hongyan.link.held import Held
from hongyan.link.router import SESSION_BITS
from hongyan.link.stream import Stream
from hongyan.protocol import records
from hongyan.protocol.outcomes import Duplicate, Rejected

RETRY_S = 0.05  # between two tries to reach the engine
SWEEP_S = 0.5
ANSWER_S = 9.0  # an engine that says nothing for so long: sends are answered `unavailable`

_NO_RECORD = records.DedupWindow(0, 0, 0, 0)  # a message that was stored says everything itself
_UNAVAILABLE = WireError("unavailable", "the engine does not answer; resend with retry")

log = structlog.get_logger("hongyan.link")


class RemoteEngine:
    """See `link.base.EngineApi`. `number`: this process's, never used again by another. `gateway` is set before the
    first login. `lost` is called when the link ends (not by `close`): whatever was logged in is no longer."""

    gateway: GatewayApi

    def __init__(
        self, path: Path, number: int, monotonic: Callable[[], float], lost: Callable[[], None]
    ) -> None:
        self._path = path
        self._number = number
        self._monotonic = monotonic
        self._lost_hook = lost
        self._stream: Stream | None = None
        self._welcome: asyncio.Future[bytes] | None = None
        self._calls: dict[int, tuple[asyncio.Future[Any], Any]] = {}  # who waits, for what type
        self._next_call = itertools.count(1).__next__
        self._held = Held()
        self._acks: dict[tuple[int, str], int] = {}  # while the link is behind
        self._queue: deque[Any] = deque()
        self._answered = False  # somebody has an answer, and has not taken it yet
        self._waiting = False  # the stream goes on in the loop's next turn
        self._closing = False
        self._sweeper: asyncio.TimerHandle | None = None

    # the link

    async def connect(self) -> bytes:
        """Until there is an engine. Returns the secret that tokens are verified with."""
        loop = asyncio.get_running_loop()
        while True:
            stream = Stream(m.decode_to_gateway, self._take, self._lost, self._drained)
            try:
                await loop.create_unix_connection(lambda made=stream: made, str(self._path))  # type: ignore[misc]
            except OSError:
                await asyncio.sleep(RETRY_S)  # it starts, or replays its journal
                continue
            self._stream = stream
            self._welcome = loop.create_future()
            stream.put(m.Hello(self._number))
            try:
                secret = await self._welcome
            except ConnectionError:
                await asyncio.sleep(RETRY_S)
                continue
            if self._sweeper is None:
                self._sweep()
            return secret

    def listening(self) -> None:
        """The gateway takes connections from now on."""
        if self._stream is not None:
            self._stream.put(m.Listening())

    async def close(self, patience_s: float) -> None:
        """Hand over what is written, then end."""
        self._closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._stream is not None:
            self._flush_acks(self._stream)
            self._stream.close()
            await asyncio.wait([self._stream.ended], timeout=patience_s)
            self._stream = None

    def _lost(self) -> None:
        while self._queue:  # what had come whole is told
            self._go_on(pausing=False)
        self._stream = None
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(ConnectionError("the engine went"))
            return
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(Refused(_UNAVAILABLE))
        self._calls.clear()
        self._acks.clear()
        if not self._closing:
            log.warning("the engine is gone")
            self._refuse(self._held.take_all())
            self._lost_hook()

    def _sweep(self) -> None:
        """Twice a second: sends that the engine leaves without an answer."""
        now = self._monotonic()
        self._refuse(self._held.take_before(now - ANSWER_S))
        self._held.now = now
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _refuse(self, sends: list[tuple[int, str]]) -> None:
        if sends:
            self.gateway.refuse(sends, _UNAVAILABLE)

    # what comes

    def _take(self, received: list[Any]) -> None:
        self._queue.extend(received)
        if not self._waiting:
            self._go_on()

    def _go_on(self, pausing: bool = True) -> None:
        """Tell what has come, up to an answer that is to be taken first."""
        self._waiting = False
        queue, told = self._queue, list[Outcomes]()
        own = self._number
        while queue:
            message = queue.popleft()
            kind = type(message)
            if self._answered and kind is not m.Reply and kind is not m.Failure:
                self._answered = False
                if pausing:
                    queue.appendleft(message)
                    self._waiting = True
                    asyncio.get_running_loop().call_soon(self._go_on)
                    break
            if kind is m.Stored:
                session = message.session
                if session and (
                    session >> SESSION_BITS != own or not self._held.take(session, message.message.key)
                ):
                    session = 0
                told.append((session, _NO_RECORD, message.message))
            elif kind is m.Repeated or kind is m.Rejection:
                if self._held.take(message.session, message.ref):
                    told.append(_answer(message))
            elif kind is m.Changed:
                told.append((0, _NO_RECORD, message.outcome))
            elif kind is not m.Told:
                self._tell(told)
                told = []
                self._other(message)
        self._tell(told)

    def _tell(self, told: list[Outcomes]) -> None:
        if told:
            self.gateway.tell(told)

    def _other(self, message: Any) -> None:
        kind = type(message)
        if kind is m.Reply or kind is m.Failure:
            self._resolve(message)
            self._answered = True
        elif kind is m.Refusal:
            theirs = [send for send in message.sends if self._held.take(*send)]
            if theirs:
                self.gateway.refuse(theirs, message.error)
        elif kind is m.Replace:
            self.gateway.replace(message.session)
        elif kind is m.Presence:
            self.gateway.presence(message.sessions, message.states)
        elif kind is m.Welcome and self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(message.secret)

    def _resolve(self, message: m.Reply | m.Failure) -> None:
        future, kind = self._calls.pop(message.call, (None, None))
        if future is None or future.done():
            return
        if isinstance(message, m.Reply):
            try:
                future.set_result(msgspec.msgpack.decode(message.value, type=kind))
            except msgspec.MsgspecError as error:
                future.set_exception(error)
        elif message.error is not None:
            future.set_exception(Refused(message.error))
        else:
            future.set_exception(RuntimeError("the engine failed to answer; its log says why"))

    def _drained(self) -> None:
        if self._stream is not None:
            self._flush_acks(self._stream)

    # EngineApi

    def _up(self) -> Stream:
        if self._stream is None:
            raise Refused(_UNAVAILABLE)
        if self._acks:
            self._flush_acks(self._stream)
        return self._stream

    def _flush_acks(self, stream: Stream) -> None:
        acks, self._acks = self._acks, {}
        for (session, address), seq in acks.items():
            stream.put(m.Ack(session, address, seq))

    async def _call(self, message: Any, kind: Any) -> Any:
        """Raises Refused, or RuntimeError for a defect of the engine."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._up().put(message)
        self._calls[message.call] = future, kind
        try:
            return await future
        finally:
            self._calls.pop(message.call, None)

    async def _ask(self, session: int, method: str, *arguments: Any) -> Any:
        return await self._call(m.Ask(self._next_call(), session, method, list(arguments)), m.ANSWERS[method])

    async def login(self, session: int, user: str, device: str, platform: str) -> LoggedIn:
        login = m.Login(self._next_call(), session, user, device, platform)
        return LoggedIn(*await self._call(login, m.LOGGED_IN))

    def logout(self, session: int) -> None:
        if self._stream is not None:
            self._up().put(m.Logout(session))

    def send(self, session: int, ref: str, to: str, content_type: str, content: bytes, retry: bool) -> None:
        stream = self._stream
        if stream is None:
            raise Refused(_UNAVAILABLE)
        if stream.behind or self._held.full:
            raise refused("busy", "the server is behind", retry_after_ms=500)
        message = m.Send(session, ref, to, content_type, content, retry)
        self._held.add(message)
        stream.put(message)

    def ack(self, session: int, address: str, seq: int) -> None:
        stream = self._up() if self._acks else self._stream
        if stream is None:
            return
        if not stream.behind:
            stream.put(m.Ack(session, address, seq))
            return
        key = (session, address)
        self._acks[key] = max(seq, self._acks.get(key, 0))

    async def create_group(self, session: int, group: str | None, name: str, join: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask(session, "create_group", group, name, join)
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
        return answer


def _answer(message: m.Repeated | m.Rejection) -> Outcomes:
    """As the gateway is told it: with so much of the record as it looks at."""
    if isinstance(message, m.Repeated):
        record = records.Send(0, 0, message.sender, message.conversation, message.ref, "", b"")
        return message.session, record, Duplicate(message.conversation, message.sent)
    record = records.Send(0, 0, "", "", message.ref, "", b"")
    return message.session, record, Rejected(message.code, message.text, message.field)
