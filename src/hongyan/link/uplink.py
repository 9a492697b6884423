"""A gateway's link to the engine, over the deaths of engines.

While there is no engine, what was accepted is held: sends in order, acknowledgements by their highest seq, logouts.
The next one hears who is logged in and up to where this gateway was told; it tells the rest, then takes what is held.

What is told behind a login's answer may rest on the groups in it: the session carries them at once. What is told of
presence behind an answer about it waits until that one has been taken, in the loop's next turn.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from hongyan.errors import Refused, WireError, refused
from hongyan.link import messages as m
from hongyan.link.base import LinkedGateway, Resumed
from hongyan.link.base import Told as Outcomes
from hongyan.link.held import Held
from hongyan.link.router import SESSION_BITS
from hongyan.link.stream import Stream
from hongyan.metrics import Figures
from hongyan.protocol import records
from hongyan.protocol.names import conversation_key
from hongyan.protocol.outcomes import Duplicate, Rejected
from hongyan.protocol.state import Message

RETRY_S = 0.05  # between two tries to reach the engine
SWEEP_S = 0.5
# An engine that is away, or says nothing, for so long: what waits is answered `unavailable`. (With the 3 s that a send
# may wait behind another request it is late: but an engine is back in one.)
ANSWER_S = 8.0
MAX_ACKS = 200_000  # held back

_NO_RECORD = records.DedupWindow(0, 0, 0, 0)  # a message that was stored says everything itself
UNAVAILABLE = WireError("unavailable", "the engine does not answer; resend with retry")

log = structlog.get_logger("hongyan.link")


class Lost(Exception):
    """The link ended before the answer."""


class Uplink:
    """`number`: this process's, never used again by another. `gateway` is set before the first login."""

    gateway: LinkedGateway

    def __init__(
        self, path: Path, number: int, monotonic: Callable[[], float], figures: Callable[[], Figures]
    ) -> None:
        self.ready = asyncio.Event()  # the engine takes requests
        self.sessions: dict[int, Resumed] = {}
        self._path = path
        self._number = number
        self._monotonic = monotonic
        self._figures = figures  # of this process
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._up: Stream | None = None  # the same, from `Ready` on
        self._keeping: asyncio.Task[None] | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._secret: asyncio.Future[bytes] = self._loop.create_future()
        self._epoch = ""
        self._told = 0
        self._listening = self._closing = False
        self._away_since = monotonic()
        self._held = Held()
        self._acks: dict[tuple[int, str], int] = {}
        self._gone: dict[int, Resumed] = {}  # logged out, and the engine does not know
        # Who waits, for what type, and the login if it is one.
        self._calls: dict[int, tuple[asyncio.Future[Any], Any, m.Login | None]] = {}
        self._next_call = itertools.count(1).__next__
        self._silent = 0  # sweeps since the engine said anything: a clock would count our own standstill too
        self._queue: deque[Any] = deque()
        self._answered = False  # somebody has an answer about presence, and has not taken it yet
        self._waiting = False  # the stream goes on in the loop's next turn
        self._by_user: dict[str, list[int]] | None = (
            None  # sessions, while it is told what was not told before
        )

    # life

    async def start(self) -> bytes:
        """Link, and keep linked. Returns the secret that tokens are verified with, once there is an engine."""
        self._keeping = self._loop.create_task(self._keep(), name="link")
        self._sweep()
        return await asyncio.shield(self._secret)

    def listening(self) -> None:
        """The gateway takes connections from now on."""
        self._listening = True
        if self._up is not None:
            self._up.put(m.Listening())

    async def close(self, patience_s: float) -> None:
        """Hand over what is written, then end."""
        self._closing = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._keeping is not None:
            self._keeping.cancel()
        if self._stream is not None:
            self._flush_acks()
            self._report()
            self._stream.close()
            await asyncio.wait([self._stream.ended], timeout=patience_s)

    async def _keep(self) -> None:
        while True:
            stream = Stream(m.decode_to_gateway, self._take, self._lost, self._flush_acks)
            try:
                await self._loop.create_unix_connection(lambda made=stream: made, str(self._path))  # type: ignore[misc]
            except OSError:
                await asyncio.sleep(RETRY_S)  # it starts, or replays its journal
                continue
            except Exception:  # without a link this gateway serves nobody: whatever it is, it is tried again
                log.exception("cannot link to the engine")
                await asyncio.sleep(SWEEP_S)
                continue
            self._stream = stream
            sessions = [*self.sessions.values(), *self._gone.values()]
            for first in range(0, len(sessions), m.A_MESSAGE):
                stream.put(m.Sessions(sessions[first : first + m.A_MESSAGE]))
            stream.put(m.Hello(self._number, self._epoch, self._told))
            await asyncio.wait([stream.ended])
            await asyncio.sleep(RETRY_S)

    def _lost(self) -> None:
        while self._queue:  # what had come whole is told
            self._go_on(pausing=False)
        self._answered = self._waiting = False
        self._stream = self._by_user = None
        if self._up is None:
            return
        self._up = None
        self.ready.clear()
        self._away_since = self._monotonic()
        for future, _, _ in self._calls.values():
            if not future.done():
                future.set_exception(Lost())
        self._calls.clear()
        if not self._closing:
            log.warning("the engine is gone", held=len(self._held))

    def _sweep(self) -> None:
        """Twice a second: sends that the engine leaves without an answer, and everything else once it says nothing."""
        # First: whatever fails here is tried again.
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        now = self._held.now = self._monotonic()
        late = self._held.take_before(now - ANSWER_S)
        if late:
            self.gateway.refuse(late, UNAVAILABLE)
        self._silent += 1
        if self._silent * SWEEP_S > ANSWER_S:
            self._give_up()
        self._report()  # what is counted when this process dies is half a second old

    def _give_up(self) -> None:
        """The engine answers each report at once, unless it hangs. (Not a limit for each call: a read may have to wait, and
        would be done for nobody while its client asks again behind it.)"""
        for future, _, login in self._calls.values():
            if not future.done():
                if login is not None:  # it may still come to it
                    self.logout(login.session)
                future.set_exception(Refused(UNAVAILABLE))

    def _report(self) -> None:
        if self._up is not None:
            self._up.put(m.Figures(self._figures()))

    # what is asked

    def send(self, send: m.Send) -> None:
        """Raises Refused."""
        up = self._up
        if self._held.full or (up is not None and up.behind):
            raise refused("busy", "the server is behind", retry_after_ms=500)
        if up is not None:
            self._held.add(send)
            up.put(send)
        elif self._monotonic() - self._away_since < ANSWER_S:
            self._held.add(send)
        else:
            raise Refused(UNAVAILABLE)

    def ack(self, session: int, address: str, seq: int) -> None:
        """Raises Refused `busy`."""
        up = self._up
        if up is not None and not up.behind:
            up.put(m.Ack(session, address, seq))
            return
        key = (session, address)
        if len(self._acks) >= MAX_ACKS and key not in self._acks:
            raise refused("busy", "the server is behind", retry_after_ms=500)
        self._acks[key] = max(seq, self._acks.get(key, 0))

    def logout(self, session: int) -> None:
        known = self.sessions.pop(session, None)
        if self._up is not None:
            self._flush_acks()
            self._up.put(m.Logout(session))
        elif known is not None:
            self._gone[session] = known

    async def call(self, make: Callable[[int], m.Login | m.Ask], kind: Any) -> Any:
        """Ask what `make(call)` says, and wait for its answer, a `kind`, as long as the engine says anything at all. Raises
        Refused, Lost, or RuntimeError for a defect of the engine."""
        if self._up is None:
            try:
                async with asyncio.timeout(max(0.0, self._away_since + ANSWER_S - self._monotonic())):
                    await self.ready.wait()
            except TimeoutError:
                raise Refused(UNAVAILABLE) from None
        if self._up is None:  # it went again
            raise Refused(UNAVAILABLE)
        self._flush_acks()  # they hold before anything asked later
        call, future = self._next_call(), self._loop.create_future()
        question = make(call)
        self._up.put(question)
        login = question if isinstance(question, m.Login) else None
        self._calls[call] = future, kind, login
        try:
            return await future
        finally:
            self._calls.pop(call, None)

    def follow(self, session: int, online: dict[str, bool], subscribe: bool | None) -> None:
        """The session was answered who is online; it follows them from now on, or no longer, or only asked."""
        known = self.sessions.get(session)
        if known is not None and subscribe:
            known.followed.update(online)
        elif known is not None and subscribe is False:
            for user in online:
                known.followed.pop(user, None)

    def _flush_acks(self) -> None:
        if self._acks and self._up is not None:
            acks, self._acks = self._acks, {}
            for (session, address), seq in acks.items():
                self._up.put(m.Ack(session, address, seq))

    # what is told

    def _take(self, received: list[Any]) -> None:
        self._silent = 0
        self._queue.extend(received)
        if not self._waiting:
            self._go_on()

    def _go_on(self, pausing: bool = True) -> None:
        """Tell what has come, up to an answer that is to be taken first."""
        self._waiting = False
        queue, told, offset = self._queue, list[Outcomes](), self._told
        while queue:
            message = queue.popleft()
            kind = type(message)
            if self._answered and kind is m.Presence:
                self._answered = False
                if pausing:
                    queue.appendleft(message)
                    self._waiting = True
                    self._loop.call_soon(self._go_on)
                    break
            if kind is m.Stored:
                told.append((self._origin(message.session, message.message), _NO_RECORD, message.message))
            elif kind is m.Told:
                offset = message.offset
            elif kind is m.Changed:
                told.append((0, _NO_RECORD, message.outcome))
            elif kind is m.Repeated or kind is m.Rejection:
                if self._held.take(message.session, message.ref):
                    told.append(_answer(message))
            else:
                self._tell(told)
                told, self._told = [], offset
                self._other(message)
                offset = self._told
        self._tell(told)
        self._told = offset

    def _tell(self, told: list[Outcomes]) -> None:
        if told:
            self.gateway.tell(told)

    def _origin(self, session: int, message: Message) -> int:
        """The session that waits for this; 0: none of ours does."""
        if session:
            ours = session >> SESSION_BITS == self._number
            return session if ours and self._held.take(session, message.key) else 0
        for theirs in self._by_user.get(message.sender, ()) if self._by_user is not None else ():
            send = self._held.get(theirs, message.key)
            if send is not None and conversation_key(message.sender, send.to) == message.conversation:
                self._held.take(theirs, message.key)
                return theirs
        return 0

    def _other(self, message: Any) -> None:
        match message:
            case m.Reply() | m.Failure():
                self._resolve(message)
            case m.Refusal(sends, error):
                theirs = [send for send in sends if self._held.take(*send)]
                if theirs:
                    self.gateway.refuse(theirs, error)
            case m.Replace(session):
                self.gateway.replace(session)
            case m.Presence(sessions, states):
                self._note_presence(sessions, {who[1:]: state.online for who, state in states.items()})
                self.gateway.presence(sessions, states)
            case m.Welcome(epoch, secret, offset):
                self._told = self._told if self._epoch else offset
                self._epoch = epoch
                if not self._secret.done():
                    self._secret.set_result(secret)
            case m.Groups(groups):
                for session, of in groups:
                    self.gateway.carry(session, of)
            case m.Restored():
                self._restore(message)
            case m.Scrape():
                self._report()
            case m.Ready():
                self._begin()

    def _note_presence(self, sessions: list[int], online: dict[str, bool]) -> None:
        for session in sessions:
            if (known := self.sessions.get(session)) is not None:
                known.followed.update(
                    {user: state for user, state in online.items() if user in known.followed}
                )

    def _resolve(self, message: m.Reply | m.Failure) -> None:
        future, kind, login = self._calls.pop(message.call, (None, None, None))
        if future is None or future.done():
            return
        if isinstance(message, m.Failure):
            defect = RuntimeError("the engine failed to answer; its log says why")
            future.set_exception(Refused(message.error) if message.error is not None else defect)
            return
        answer = msgspec.msgpack.decode(message.value, type=kind)
        if login is not None:
            user, device, session_id = login.user, login.device, answer[0]
            self.sessions[login.session] = Resumed(login.session, user, device, session_id, {})
            self.gateway.carry(login.session, answer[1])
        elif kind is m.PRESENCE:
            self._answered = True
        future.set_result(answer)

    # after an engine's death

    def _restore(self, restored: m.Restored) -> None:
        self.gateway.send_away(restored.away, restored.away_topics)
        self.gateway.resync(restored.resync)
        self._by_user = {}
        for session, known in self.sessions.items():
            self._by_user.setdefault(known.user, []).append(session)

    def _begin(self) -> None:
        """The engine takes requests: first what is held, in order."""
        up = self._up = self._stream
        if up is None:
            return
        if self._by_user is not None:
            self._told_again(up)
        if self._listening:
            up.put(m.Listening())
        self.ready.set()

    def _told_again(self, up: Stream) -> None:
        self._by_user = None
        self._flush_acks()
        gone, self._gone = self._gone, {}
        for session in gone:
            up.put(m.Logout(session))
        dropped = []
        for send in self._held.sends():
            if send.session in self.sessions:
                send.retry = True  # the engine before may have stored it
                up.put(send)
            else:
                dropped.append((send.session, send.ref))
        for session, ref in dropped:
            self._held.take(session, ref)
        if dropped:
            self.gateway.refuse(dropped, UNAVAILABLE)


def _answer(message: m.Repeated | m.Rejection) -> Outcomes:
    """As the gateway is told it: with so much of the record as it looks at."""
    if isinstance(message, m.Repeated):
        record = records.Send(0, 0, message.sender, message.conversation, message.ref, "", b"")
        return message.session, record, Duplicate(message.conversation, message.sent)
    record = records.Send(0, 0, "", "", message.ref, "", b"")
    return message.session, record, Rejected(message.code, message.text, message.field)
