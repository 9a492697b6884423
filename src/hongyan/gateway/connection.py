"""One connection: login state, order of requests, deadlines. What a request does is in handlers.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

import structlog
from picows import WSTransport

from hongyan.errors import Refused, WireError
from hongyan.gateway import frames, limits
from hongyan.gateway.deferred import DEFER_S, Deferred
from hongyan.gateway.handlers import HANDLERS, READS, Later
from hongyan.gateway.outbox import MAX_FRAME_BYTES
from hongyan.gateway.peer import Peer
from hongyan.gateway.wire import Wire
from hongyan.protocol.codec import Codec
from hongyan.protocol.requests import Ack, BadRequest, Heartbeat, Login, Request, SendMessage

if TYPE_CHECKING:
    from hongyan.gateway.server import Gateway

log = structlog.get_logger("hongyan.gateway")

_INTERNAL = WireError("internal", "the server failed to answer this; try again")
_UNAUTHENTICATED = WireError("unauthenticated", "log in first")
_LOGGED_IN = WireError("invalid_state", "this connection is logged in already")
_WRONG_KIND = WireError("malformed", "a message of the wrong kind for the subprotocol")
_EXPIRED = WireError("token_expired", "the token has expired")
EXPIRY_LEEWAY_S = 30.0  # a token may verify so long after its `exp`


class State(Enum):
    """Of a connection that is not `closed`."""

    CONNECTED = auto()
    LOGGING_IN = auto()
    READY = auto()


class Input(Enum):
    LOGIN = auto()
    ACCEPTED = auto()
    REFUSED = auto()


_READY = State.READY  # (`State.READY` asks a metaclass, with every message)

# What is not here cannot happen: looking it up is a defect (`_failed`).
NEXT: dict[tuple[State, Input], State] = {
    (State.CONNECTED, Input.LOGIN): State.LOGGING_IN,
    (State.LOGGING_IN, Input.ACCEPTED): State.READY,
    (State.LOGGING_IN, Input.REFUSED): State.CONNECTED,
}


class Connection(Peer):
    """Requests are taken strictly in order: while one of those that wait is
    under way (login, reads, group commands), reading stops and what had been read is deferred. So there is
    nothing deferred that is not behind such a one."""

    __slots__ = (
        "_backlog_seen", "_decode", "_deferred", "_login_deadline", "_waiting", "address", "device", "entering",
        "expires_at", "session", "state", "topics", "user",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, wire: Wire, codec: Codec, address: str) -> None:
        super().__init__(gateway, wire, codec)
        self.address = address
        self.session = gateway.next_session()
        self.user = self.device = ""
        self.state = State.CONNECTED
        self.topics: set[str] = set()
        self.expires_at = 0.0
        self._login_deadline = gateway.wheel.now + gateway.settings.login_timeout_ms / 1000
        self._decode = codec.decode
        # The group that a request under way makes the user a member of; "": one that has no name yet.
        self.entering: str | None = None
        self._waiting: tuple[Later, str | None] | None = None  # a read whose reply has no room yet
        self._backlog_seen = 0
        self._deferred: Deferred | None = None  # while there is any

    # frames

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        self.gateway.attach(self)
        self.wire.wheel.schedule(self.wire, min(self._login_deadline, self._silence_deadline()))

    def on_other(self, opcode: int, payload: bytes) -> None:
        if self._busy:
            self._defer(None)
        else:
            self._wrong_kind()

    def pause_writing(self) -> None:
        """Past the room for one reply: nothing to do, reads look for themselves."""

    def resume_writing(self) -> None:
        if self._waiting is not None and not self.closed and self.outbox.has_room:
            (coroutine, ref), self._waiting = self._waiting, None
            self.gateway.spawn(self._serve(coroutine, ref))

    # requests

    def on_message(self, payload: bytes) -> None:
        if self._busy:
            self._defer(payload)
            return
        decode = self._decode  # (a call of what an attribute holds is slow as `self._decode(…)`)
        try:
            request = decode(payload)
        except BadRequest as bad:
            self._not_a_request(bad, len(payload))
            return
        gateway = self.gateway
        gateway.counters.requests += 1
        try:
            if self.state is not _READY:
                self._before_login(request)
            elif type(request) is SendMessage:  # this and the next come with every message: straight on
                ref = request.message_id
                if not self._limited or self._allowed(gateway.monotonic(), ref):
                    send = request.data
                    gateway.engine.send(
                        self.session, ref, send.to, send.content_type, send.content, send.retry
                    )
                    gateway.in_flight += 1
            elif type(request) is Ack:
                gateway.counters.delivery_acks += 1
                ack = request.data
                if ack.acks is None:
                    if self._limited:
                        self._count_quiet(gateway.monotonic())
                    gateway.engine.ack(self.session, ack.conversation, ack.seq or 0)
                else:
                    self._acknowledge(ack.acks)
            elif type(request) is Heartbeat:
                self._count_quiet(gateway.monotonic())
                self._handle(request)
            elif self._allowed(gateway.monotonic(), request.message_id):
                if type(request) is Login:
                    self.write_error(_LOGGED_IN, request.message_id)
                else:
                    self._handle(request)
        except Refused as refusal:
            self.write_error(refusal.error, request.message_id)
        except Exception:
            self._failed(request.message_id)

    def _failed(self, ref: str | None) -> None:
        """A defect, or damaged storage. It costs the request its answer; while logging in it costs the connection:
        what has been done of a login is not known, and its outbox is held."""
        log.exception("a request failed", session=self.session)
        if self.state is State.READY:
            self.write_error(_INTERNAL, ref)
        else:
            self.close(frames.INTERNAL, "internal error")

    def _wrong_kind(self) -> None:
        now = self.gateway.monotonic()
        if self._allowed(now, None):
            self._reject(_WRONG_KIND, None, now)

    def _not_a_request(self, bad: BadRequest, size: int) -> None:
        now = self.gateway.monotonic()
        # Saying what is wrong costs by the byte (up to 30 ms for 64 KiB): so does sending it.
        self._count_quiet(now, size // limits.QUIET_BYTES)
        if self._allowed(now, bad.ref):
            self._reject(self._unless_stranger(bad), bad.ref, now)

    def _unless_stranger(self, bad: BadRequest) -> WireError:
        """Before login, whatever is no login and can be read gets `unauthenticated`, also with wrong fields."""
        stranger = self.state is State.CONNECTED and bad.kind not in (None, "login")
        return _UNAUTHENTICATED if stranger else bad.error

    def _before_login(self, request: Request) -> None:
        ref = request.message_id
        if not self._allowed(self.gateway.monotonic(), ref):
            if type(request) is Login:  # a login that is refused ends the connection, for this reason too
                self.close(frames.BAD_LOGIN, "rate_limited")
        elif type(request) is Login:
            self._handle(request)
        else:
            self.write_error(_UNAUTHENTICATED, ref)

    def _acknowledge(self, acks: Mapping[str, int]) -> None:
        gateway = self.gateway
        self._count_quiet(gateway.monotonic(), 1 + len(acks) // limits.ACKS_A_REQUEST)
        for conversation, seq in acks.items():
            gateway.engine.ack(self.session, conversation, seq)

    def _handle(self, request: Request) -> None:
        kind = type(request)
        later = HANDLERS[kind](self, request)
        if later is not None:
            self._start(later, request.message_id, kind in READS)

    def _start(self, coroutine: Later, ref: str | None, read: bool) -> None:
        """Serve something that waits; until it is answered nothing else of this connection is taken."""
        self._busy = True
        self._pause()
        if read and not self.outbox.has_room:
            self._waiting = coroutine, ref
            self._backlog_seen = self.outbox.backlog
        else:
            self.gateway.spawn(self._serve(coroutine, ref))

    async def _serve(self, coroutine: Later, ref: str | None) -> None:
        try:
            payload = await coroutine
            if payload is not None:
                if len(payload) > MAX_FRAME_BYTES - 10:
                    log.error("a reply above the frame limit", bytes=len(payload), session=self.session)
                    self.write_error(_INTERNAL, ref)
                else:
                    self.push(payload)
        except Refused as refusal:
            self.write_error(refusal.error, ref)
        except Exception:
            self._failed(ref)
        finally:
            self._busy = False
            self._continue()

    def _defer(self, payload: bytes | None) -> None:
        if not self._deferred:
            self._deferred = Deferred(self._decode)
            self.wire.wheel.slow(self._overdue, self.wire.wheel.now + DEFER_S)
        self._deferred.add(payload)

    def _overdue(self) -> None:
        for error, ref in self._deferred.overdue() if self._deferred is not None else ():
            self._write_error_ahead(error, ref)

    def _write_error_ahead(self, error: WireError, ref: str | None) -> None:
        """Past what is held back: a login under way may hold it for more than ten seconds, and drop it if refused."""
        frame = frames.messages(self.codec.binary, [self.error(error, ref)])
        if not self.closed and not self.outbox.write_ahead(frame):
            self.too_slow()

    def _drop_deferred(self) -> None:
        """What was deferred is not served, but its acknowledgements hold: only a crash may set a cursor back."""
        deferred, self._deferred = self._deferred, None
        if deferred is None or self.state is not State.READY:
            return
        for conversation, seq in deferred.acks():
            try:
                self.gateway.engine.ack(self.session, conversation, seq)
            except Refused:
                pass
            except Exception:
                log.exception("an acknowledgement failed", session=self.session)

    def stop_reading(self) -> None:
        """The server stops: what has not been taken by now is not accepted."""
        self._drop_deferred()
        self._pause()

    def _continue(self) -> None:
        """Take what was deferred, in order, until one waits again; then read on."""
        deferred = self._deferred
        try:
            while deferred and not self._busy and not self.closed:
                payload = deferred.take()
                if payload is None:
                    self._wrong_kind()
                else:
                    self.on_message(payload)
        except Exception:
            log.exception("a deferred request failed", session=self.session)
            self.close(frames.INTERNAL, "internal error")
        if not deferred:
            self._deferred = None  # an empty one has 700 bytes
        self._resume()

    # login

    def begin_login(self, user: str, device: str, expires_at_ms: int) -> None:
        """The token verified. `@user` is carried from here on, what comes for it is held behind the
        answer: between the engine's reading and that answer no push can slip through."""
        self.state = NEXT[self.state, Input.LOGIN]
        self.user, self.device = user, device
        left = (expires_at_ms - self.gateway.now_ms()) / 1000
        self.expires_at = self.gateway.monotonic() + (left if left > 0 else left + EXPIRY_LEEWAY_S)
        self.outbox.hold()
        self.gateway.subscribe(self, f"@{user}")

    def login_refused(self) -> None:
        if self.closed:
            return
        self.state = NEXT[self.state, Input.REFUSED]
        for topic in tuple(self.topics):
            self.gateway.unsubscribe(self, topic)
        self.outbox.drop()
        self.user = self.device = ""
        self.expires_at = 0.0
        self.login_later(0.0)  # it was in time, with a token that is good: another attempt has as long again

    def login_later(self, wait_s: float) -> None:
        """The next attempt may come in so many seconds, and has as long as the first."""
        now = self.wire.wheel.now
        self._login_deadline = now + wait_s + self.gateway.settings.login_timeout_ms / 1000
        self.last_seen = max(self.last_seen, now + wait_s)  # it has been told to be silent
        self.wire.wheel.schedule(self.wire, min(self._login_deadline, self._silence_deadline()))

    def login_accepted(self, groups: Sequence[str] | None, answer: bytes) -> None:
        """Carry exactly the groups the engine names now; then answer, then what was held."""
        self.state = NEXT[self.state, Input.ACCEPTED]
        if groups is not None:
            self.gateway.carry(self.session, groups)
        self.gateway.logged_in(self)
        self.wire.wheel.schedule(self.wire, min(self.expires_at, self._silence_deadline()))
        if not self.outbox.release(answer):
            self.too_slow()

    # deadlines, the end

    def _silence_deadline(self) -> float:
        return self.last_seen + 2 * self.gateway.settings.heartbeat_interval_ms / 1000

    def on_deadline(self, now: float) -> float | None:
        """The wheel's question: what is due, and when to ask again."""
        strange = self.state is State.CONNECTED and not self._busy  # else its login waits for its turn
        if strange and now >= self._login_deadline:
            self.gateway.counters.login_timeouts += 1
            self.close(frames.BAD_LOGIN, "no login in time")
            return None
        if self.expires_at and now >= self.expires_at:
            self._write_error_ahead(_EXPIRED, None)
            self.close(frames.BAD_LOGIN, "token expired")
            return None
        if self._waiting is not None:  # not reading ourselves: alive is a peer that takes what we sent
            if self.outbox.backlog < self._backlog_seen:
                self._backlog_seen = self.outbox.backlog
                self.last_seen = now
        elif self._busy or self._slowed:
            self.last_seen = now
        silence = self._silence_deadline()
        if now >= silence:
            self.gateway.counters.heartbeat_timeouts += 1
            self.close(frames.SILENT, "no sign of life")
            return None
        deadline = min(silence, self.expires_at) if self.expires_at else silence
        return min(deadline, self._login_deadline) if strange else deadline

    def on_end(self, flush: bool) -> None:
        """Out of every table, at once: a peer that never reads its close frame holds nothing."""
        super().on_end(flush)
        self._drop_deferred()
        self.wire.wheel.forget(self._overdue)
        if self._waiting is not None:
            self._waiting[0].close()
            self._waiting = None
        self.gateway.detach(self)
