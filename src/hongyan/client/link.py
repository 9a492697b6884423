"""What a client knows between its sockets, and what it has to say next. No sockets here."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection

from hongyan.client.errors import Closed, ConnectionLost, RequestRefused, TooLarge
from hongyan.client.inbox import Inbox
from hongyan.client.models import Ack, Event, Message
from hongyan.client.outbox import Outbox
from hongyan.client.pace import Pace

MAX_EVENTS = 1000
_READ = "read"  # message_id of the inbox's own sync and history requests: one at a time


@dataclass(slots=True, eq=False)
class Call:
    """A request that somebody awaits, or (waiter without a reader) one of the client's own."""

    ref: str
    type: str
    data: dict[str, Any]
    repeatable: bool
    waiter: asyncio.Future[dict[str, Any]]
    written: bool = False
    not_before: float = 0.0


def envelope(type_: str, data: dict[str, Any], ref: str | None = None) -> bytes:
    found: dict[str, Any] = {"type": type_, "data": data}
    if ref is not None:
        found["message_id"] = ref
    return msgspec.json.encode(found)


class Link:
    """State of the client: `incoming` takes one envelope, `due` gives the frames to write now."""

    def __init__(
        self, in_order: bool, capacity: int, rate: float | None, burst: float, ack_interval: float
    ) -> None:
        self.outbox = Outbox(in_order)
        self.inbox = Inbox(capacity, self.outbox.__contains__)
        self.calls: dict[str, Call] = {}
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.followed: dict[str, None] = {}
        self.ws: ClientConnection | None = None
        self.user_id = ""
        self.max_frame = 0
        self.heartbeat_s = 30.0
        self.failure: Closed | None = None
        self.last_problem = ""
        self.first_login, self.wake = asyncio.Event(), asyncio.Event()
        self.arrived, self.event_arrived = asyncio.Event(), asyncio.Event()
        self.synced, self.acks_sent = asyncio.Event(), asyncio.Event()
        self._pace = Pace(rate, burst)
        self._ack_interval = ack_interval
        self._ack_at: float | None = None
        self._read_at = 0.0
        self._beat_at = 0.0
        self._refs = itertools.count(1)

    # the connection's life

    def logged_in(self, ws: ClientConnection, answer: dict[str, Any], now: float) -> None:
        self.ws = ws
        self.user_id = answer["user_id"]
        self.max_frame = answer.get("max_frame_bytes", 0)
        self.heartbeat_s = answer.get("heartbeat_interval_ms", 30_000) / 1000
        self._beat_at = now + self.heartbeat_s
        self._read_at = 0.0
        self._ack_at = now  # acks that may have been lost go first: they hold for the sync behind them
        self.inbox.connected()
        followed = list(self.followed)
        for start in range(0, len(followed), 100):
            self.call(
                "presence", {"users": followed[start : start + 100], "subscribe": True}, repeatable=False
            )
        self.tell(Event("connected", answer))
        self.first_login.set()
        self.wake.set()

    def lost(self) -> None:
        self.ws = None
        self.inbox.lost()
        self.outbox.lost()
        for call in list(self.calls.values()):
            if call.repeatable:
                call.written = False
            elif call.written or call.type == "presence":  # a renewed subscription is renewed again
                self._refuse(call, ConnectionLost(f"{call.type}: the connection was lost before the answer"))

    def fail(self, error: Closed) -> None:
        """The end: everybody who waits is told. The first reason stays."""
        self.failure = self.failure or error
        for send in self.outbox.all():
            self.outbox.give_up(send.key)
            if not send.waiter.done():
                send.waiter.set_exception(self.failure)
        for call in list(self.calls.values()):
            self._refuse(call, self.failure)
        for event in (self.first_login, self.arrived, self.event_arrived, self.synced, self.acks_sent):
            event.set()

    def call(self, type_: str, data: dict[str, Any], repeatable: bool) -> Call:
        ref = f"c{next(self._refs)}"
        call = Call(ref, type_, data, repeatable, asyncio.get_running_loop().create_future())
        # Nobody may be waiting (renewed subscriptions, a caller that was cancelled): no noise about that.
        call.waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.calls[ref] = call
        self.wake.set()
        return call

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.event_arrived.set()

    async def flush_acks(self) -> None:
        """Until everything acknowledgeable is written; at once where there is no connection."""
        while self.inbox.has_acks and self.ws is not None and self.failure is None:
            self._ack_at = 0.0
            self.acks_sent.clear()
            self.wake.set()
            await self.acks_sent.wait()

    # what comes in

    def incoming(self, found: dict[str, Any], now: float) -> None:
        """One envelope of the server. Raises KeyError, TypeError, ValueError for one that is not sound."""
        kind, data = found["type"], found["data"]
        if kind == "message":
            self.inbox.push(Message.build(data, found["message_id"], found["timestamp"]))
        elif kind == "ack":
            self._acknowledged(found)
        elif kind == "error":
            self._error(RequestRefused.from_data(data), data.get("ref"), now)
        elif data.get("ref") == _READ:
            self.inbox.reply(data)
        elif data.get("ref") in self.calls:
            self._answered(data)
        elif kind == "resync":
            self.inbox.resync()
        elif kind in ("presence", "group_event"):
            if data.get("event") == "left" and data.get("user") == self.user_id:
                self.inbox.left(data["group"])
            self.tell(Event(kind, data))
        self.arrived.set()
        if self.inbox.complete:
            self.synced.set()
        self.wake.set()

    def _acknowledged(self, found: dict[str, Any]) -> None:
        data = found["data"]
        send = self.outbox.acknowledged(data["ref"])
        ack = Ack(
            data["ref"], data["conversation"], data["seq"], found["message_id"], found["timestamp"],
            bool(data.get("duplicate")),
        )  # fmt: skip
        # Also for a send that was given up: it takes its place all the same.
        self.inbox.acknowledged(ack.conversation, ack.seq, ack.duplicate)
        if send is not None and not send.waiter.done():
            send.waiter.set_result(ack)

    def _answered(self, data: dict[str, Any]) -> None:
        call = self.calls.pop(data["ref"])
        if call.type == "leave_group":
            self.inbox.left(call.data["group"])
        if call.type == "presence" and not call.repeatable:
            self.tell(Event("presence", {"states": data["states"]}))
        if not call.waiter.done():
            call.waiter.set_result(data)

    def _error(self, error: RequestRefused, ref: str | None, now: float) -> None:
        self.last_problem = str(error)
        pause = 0.5 if error.retry_after_ms is None else error.retry_after_ms / 1000
        if ref == _READ:
            self._read_at = now + pause
            self.inbox.read_failed(error.code, error.retry)
        elif ref in self.calls:
            call = self.calls[ref]
            if error.retry == "never" or not call.repeatable:
                self._refuse(call, error)
            else:
                call.written, call.not_before = False, now + pause
        elif ref is not None:
            send = self.outbox.refused(ref, error, now)
            if send is not None and not send.waiter.done():
                send.waiter.set_exception(error)

    def _refuse(self, call: Call, error: Exception) -> None:
        self.calls.pop(call.ref, None)
        if not call.waiter.done():
            call.waiter.set_exception(error)

    # what goes out

    def due(self, now: float) -> Iterator[bytes]:
        """Frames to write now, in this order: acks, reads, calls, sends, a heartbeat."""
        if self.inbox.has_acks:
            if self._ack_at is None:
                self._ack_at = now + self._ack_interval
            if now >= self._ack_at:
                while acks := self.inbox.acks():
                    yield envelope("ack", {"acks": acks})
                self._ack_at = None
        self.acks_sent.set()
        if now >= self._read_at and self._may(now) and (read := self.inbox.next_read()) is not None:
            self._pace.spend()
            yield envelope(read.type, read.data, _READ)
        for call in list(self.calls.values()):
            if not call.written and now >= call.not_before and self._may(now):
                call.written = True
                self._pace.spend()
                yield envelope(call.type, call.data, call.ref)
        while self._may(now) and (send := self.outbox.next(now)) is not None:
            frame = send.frame()
            if self.max_frame and len(frame) > self.max_frame:
                self.too_large(send.key)
                continue
            self._pace.spend()
            yield frame
        if now >= self._beat_at:
            self._beat_at = now + self.heartbeat_s
            yield envelope("heartbeat", {})

    def next_due(self, now: float) -> float:
        """When `due` may have something without anything having come in."""
        times = [self._beat_at, self._pace.ready_at(now), self.outbox.paused_until, self._read_at]
        times += [call.not_before for call in self.calls.values() if not call.written]
        if self._ack_at is not None:
            times.append(self._ack_at)
        return min((time for time in times if time > now), default=now + self.heartbeat_s)

    def too_large(self, key: str | None = None) -> bool:
        """Fail the send that is too large for the server: `key`, else the largest in flight."""
        send = self.outbox.give_up(key) if key is not None else self.outbox.largest_in_flight()
        if send is None:
            return False
        if not send.waiter.done():
            send.waiter.set_exception(TooLarge(f"{send.size} bytes are too large for this server"))
        return True

    def _may(self, now: float) -> bool:
        return self._pace.ready_at(now) <= now
