"""What the engine tells, turned into frames: encoded once per codec and variant, never per recipient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from hongyan.errors import WireError
from hongyan.gateway import frames
from hongyan.gateway.frames import BINARY, TEXT
from hongyan.ids import Snowflake
from hongyan.link.base import Origin, PresenceState, Told
from hongyan.metrics import Counters
from hongyan.protocol.codec import Codec
from hongyan.protocol.names import address_for
from hongyan.protocol.outcomes import Duplicate, GroupChanged, Rejected, Stored
from hongyan.protocol.state import Message

if TYPE_CHECKING:
    from hongyan.gateway.connection import Connection

EARLY_BYTES = 128 * 1024  # gathered for one connection within one batch before it is written

log = structlog.get_logger("hongyan.gateway")


def frame_of(codec: Codec, payload: bytes) -> bytes:
    return frames.encode(BINARY if codec.binary else TEXT, payload)


def presence_data(states: Mapping[str, PresenceState]) -> dict[str, Any]:
    return {who: {"online": state.online, "last_seen": state.last_seen} for who, state in states.items()}


class Fanout:
    """`GatewayApi` over the sessions and topics of this process.

    A topic is an address: `@alice` has every connection of alice that is logged in (or about to be),
    `#team` every connection of its members.
    """

    def __init__(
        self,
        group_event_max_members: int,
        snowflake: Snowflake,
        counters: Counters,
        now_ms: Callable[[], int],
    ) -> None:
        self.sessions: dict[int, Connection] = {}
        self.topics: dict[str, set[Connection]] = {}
        self.in_flight = 0  # sends admitted and not yet answered
        self.counters = counters
        self.now_ms = now_ms
        self.snowflake = snowflake
        self._event_max_members = group_event_max_members
        self._touched: dict[Connection, int] = {}  # connection -> bytes gathered in this batch

    # topics

    def subscribe(self, connection: Connection, topic: str) -> None:
        self.topics.setdefault(topic, set()).add(connection)
        connection.topics.add(topic)

    def unsubscribe(self, connection: Connection, topic: str) -> None:
        connection.topics.discard(topic)
        of = self.topics.get(topic)
        if of is not None:
            of.discard(connection)
            if not of:
                del self.topics[topic]

    # GatewayApi

    def tell(self, told: Sequence[Told]) -> None:
        for one in told:
            try:
                self._tell(one)
            except Exception:  # one outcome that cannot be told must not hide the others
                log.exception("cannot tell an outcome", outcome=type(one.outcome).__name__)
        self._flush()

    def refuse(self, origins: Sequence[Origin], error: WireError) -> None:
        for origin in origins:
            self.in_flight -= 1
            connection = self.sessions.get(origin.session)
            if connection is not None:
                self._push(connection, connection.error_frame(error, origin.ref))
        self._flush()
        self.answered()

    def replace(self, session: int) -> None:
        connection = self.sessions.get(session)
        if connection is not None:
            self.counters.replaced += 1
            connection.close(frames.REPLACED, "replaced by a newer login of this device")

    def presence(self, session: int, states: Mapping[str, PresenceState]) -> None:
        connection = self.sessions.get(session)
        if connection is not None:
            connection.push(connection.frame("presence", {"states": presence_data(states)}))

    def answered(self) -> None:
        """Called when sends have been answered (a drain may wait for the last)."""

    # one outcome

    def _tell(self, told: Told) -> None:
        outcome, origin = told.outcome, told.origin
        connection = None
        if origin is not None:
            self.in_flight -= 1
            if self.in_flight <= 0:
                self.answered()
            connection = self.sessions.get(origin.session)
        if isinstance(outcome, Stored):
            message = outcome.message
            self.counters.messages_accepted += 1
            if origin is not None and connection is not None:
                address = address_for(told.user, message.conversation)
                codec = connection.codec
                payload = codec.ack(origin.ref, address, message.seq, False, message.at, message.id)
                self._push(connection, frame_of(codec, payload))
                self.counters.acks_sent += 1
            self._deliver(message, origin.session if origin is not None else 0)
        elif isinstance(outcome, GroupChanged):
            self._group_changed(outcome)
        elif origin is None or connection is None:
            return
        elif isinstance(outcome, Duplicate):
            self.counters.messages_duplicate += 1
            sent, codec = outcome.sent, connection.codec
            address = address_for(told.user, outcome.conversation)
            payload = codec.ack(origin.ref, address, sent.seq, True, sent.at, sent.id)
            self._push(connection, frame_of(codec, payload))
        elif isinstance(outcome, Rejected):
            self.counters.messages_rejected += 1
            error = WireError(outcome.code, outcome.text, outcome.field)
            self._push(connection, connection.error_frame(error, origin.ref))

    def _deliver(self, message: Message, origin: int) -> None:
        key, sender = message.conversation, message.sender
        if key[0] == "#":
            self._spread(self.topics.get(key), key, message, origin)
            return
        a, _, b = key.partition("|")
        self._spread(self.topics.get(f"@{a}"), f"@{b}", message, origin, a == sender)
        if a != b:
            self._spread(self.topics.get(f"@{b}"), f"@{a}", message, origin, b == sender)

    def _spread(
        self,
        to: Iterable[Connection] | None,
        address: str,
        message: Message,
        origin: int,
        own: bool | None = None,
    ) -> None:
        """Push to all of a topic but the origin; `own` None: some of a group's sessions are the sender's."""
        if not to:
            return
        sender = message.sender
        variants: dict[tuple[bool, bool], bytes] = {}
        touched = self._touched
        slow = None
        for connection in to:
            if connection.session == origin:
                continue
            mine = own if own is not None else connection.user == sender
            codec = connection.codec
            frame = variants.get((codec.binary, mine))
            if frame is None:
                frame = variants[codec.binary, mine] = frame_of(codec, codec.message(address, message, mine))
            connection.outbox.frames.append(frame)
            gathered = touched.get(connection, 0) + len(frame)
            if gathered > EARLY_BYTES:
                gathered = 0
                if not connection.outbox.flush():
                    slow = [*(slow or ()), connection]
            touched[connection] = gathered
            self.counters.pushes += 1
        for connection in slow or ():  # closing changes the topic's set: not inside the loop
            connection.too_slow()

    def _group_changed(self, outcome: GroupChanged) -> None:
        for event, user in outcome.events:
            own = tuple(self.topics.get(f"@{user}", ()))
            for connection in own:
                if event == "joined":
                    self.subscribe(connection, outcome.group)
                elif event == "left":
                    self.unsubscribe(connection, outcome.group)
            to = set(own)
            if outcome.members <= self._event_max_members:
                to |= self.topics.get(outcome.group, set())
            data = {"group": outcome.group, "event": event, "user": user}
            self._broadcast(to, "group_event", data)

    def _broadcast(self, to: Iterable[Connection], kind: str, data: dict[str, Any]) -> None:
        variants: dict[bool, bytes] = {}
        at, number = self.now_ms(), self.snowflake.next()
        for connection in to:
            codec = connection.codec
            frame = variants.get(codec.binary)
            if frame is None:
                frame = variants[codec.binary] = frame_of(codec, codec.envelope(kind, data, at, number))
            self._push(connection, frame)

    # writing

    def _push(self, connection: Connection, frame: bytes) -> None:
        connection.outbox.frames.append(frame)
        gathered = self._touched.get(connection, 0) + len(frame)
        if gathered > EARLY_BYTES:
            gathered = 0
            if not connection.outbox.flush():
                connection.too_slow()
        self._touched[connection] = gathered

    def _flush(self) -> None:
        touched, self._touched = self._touched, {}
        for connection in touched:
            if not connection.outbox.flush():
                connection.too_slow()
