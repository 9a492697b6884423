"""What the engine tells, turned into frames: encoded once per codec and variant, never per recipient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from hongyan.errors import WireError
from hongyan.gateway import frames
from hongyan.gateway.frames import BINARY, TEXT
from hongyan.ids import Snowflake
from hongyan.link.base import PresenceState, Told
from hongyan.metrics import Counters
from hongyan.protocol.codec import Codec
from hongyan.protocol.names import address_for
from hongyan.protocol.outcomes import Duplicate, GroupChanged, Outcome, Rejected
from hongyan.protocol.records import Record, Send
from hongyan.protocol.state import Message

if TYPE_CHECKING:
    from hongyan.gateway.connection import Connection

# Of the frames made since the last write: past it all are written, so that one connection gathers no more.
EARLY_BYTES = 256 * 1024

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
        self._touched: list[Connection] = []  # have frames to write (one may be named twice)
        self._gathered = 0  # bytes of the frames made since the last write

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

    def tell(self, told: Iterable[Told]) -> None:
        stored, other = self._stored, self._other
        for session, record, outcome in told:
            if session:
                self.in_flight -= 1
            try:
                if type(outcome) is Message:
                    stored(session, outcome)
                else:
                    other(session, record, outcome)
            except Exception:  # one outcome that cannot be told must not hide the others
                log.exception("cannot tell an outcome", outcome=type(outcome).__name__)
            if (
                self._gathered > EARLY_BYTES
            ):  # between outcomes: writing may close a connection, which changes topics
                self._flush()
        self._flush()
        self.answered()

    def refuse(self, sends: Sequence[tuple[int, str]], error: WireError) -> None:
        self.in_flight -= len(sends)
        for session, ref in sends:
            connection = self.sessions.get(session)
            if connection is not None:
                try:
                    self._push(connection, connection.error_frame(error, ref))
                except Exception:
                    log.exception("cannot refuse a send", session=session)
        self._flush()
        self.answered()

    def replace(self, session: int) -> None:
        connection = self.sessions.get(session)
        if connection is not None:
            self.counters.replaced += 1
            try:
                connection.close(frames.REPLACED, "replaced by a newer login of this device")
            except Exception:
                log.exception("cannot close a connection", session=session)
                connection.wire.abort()

    def presence(self, sessions: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        to = [connection for session in sessions if (connection := self.sessions.get(session)) is not None]
        try:
            self._broadcast(to, "presence", {"states": presence_data(states)})
        except Exception:
            log.exception("cannot tell of presence")
        self._flush()

    def answered(self) -> None:
        """Called when sends have been answered (a drain may wait for the last)."""

    # one outcome

    def _stored(self, session: int, message: Message) -> None:
        """Acknowledge to `session`, push to everyone else."""
        counters = self.counters
        counters.messages_accepted += 1
        key, sender = message.conversation, message.sender
        direct = key[0] != "#"
        if direct:
            a, _, b = key.partition("|")
            peer = b if a == sender else a
            address = "@" + peer
        else:
            address = key
        connection = self.sessions.get(session)
        if connection is not None:
            codec = connection.codec
            payload = codec.ack(message.key, address, message.seq, False, message.at, message.id)
            frame = frames.encode(BINARY if codec.binary else TEXT, payload)
            outbox = connection.outbox
            if not outbox.frames or outbox.held:
                self._touched.append(connection)
            outbox.frames.append(frame)
            self._gathered += len(frame)
            counters.acks_sent += 1
        to = self.topics.get(address)
        if not direct:
            self._spread(to, key, message, session)
            return
        own = "@" + sender
        if to is not None and peer != sender:
            self._spread(to, own, message, session, False)
        to = self.topics.get(own)
        if to is not None and (len(to) > 1 or connection not in to):
            self._spread(to, address, message, session, True)

    def _other(self, session: int, record: Record, outcome: Outcome) -> None:
        if isinstance(outcome, GroupChanged):
            self._group_changed(outcome)
            return
        connection = self.sessions.get(session)
        if connection is None or type(record) is not Send:
            return
        if isinstance(outcome, Duplicate):
            self.counters.messages_duplicate += 1
            sent, codec = outcome.sent, connection.codec
            address = address_for(record.sender, outcome.conversation)
            payload = codec.ack(record.key, address, sent.seq, True, sent.at, sent.id)
            self._push(connection, frame_of(codec, payload))
        elif isinstance(outcome, Rejected):
            self.counters.messages_rejected += 1
            error = WireError(outcome.code, outcome.text, outcome.field)
            self._push(connection, connection.error_frame(error, record.key))

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
        for connection in to:
            if connection.session == origin:
                continue
            mine = own if own is not None else connection.user == sender
            codec = connection.codec
            variant = (codec.binary, mine)
            frame = variants.get(variant)
            if frame is None:
                frame = variants[variant] = frame_of(codec, codec.message(address, message, mine))
                self._gathered += len(frame)
            outbox = connection.outbox
            if not outbox.frames or outbox.held:
                touched.append(connection)
            outbox.frames.append(frame)
            self.counters.pushes += 1

    def _group_changed(self, outcome: GroupChanged) -> None:
        for event, user in outcome.events:
            own = tuple(self.topics.get(f"@{user}", ()))
            for connection in own:
                if event == "joined":
                    self.subscribe(connection, outcome.group)
                elif event == "left":
                    self.unsubscribe(connection, outcome.group)
            to = set(own)
            # One request may invite a hundred: that is for them to know, not a hundred events for each member.
            if event != "invited" and outcome.members <= self._event_max_members:
                to |= self.topics.get(outcome.group, set())
            data = {"group": outcome.group, "event": event, "user": user}
            self._broadcast(to, "group_event", data)

    def _broadcast(self, to: Iterable[Connection], kind: str, data: dict[str, Any]) -> None:
        variants: dict[bool, bytes] = {}
        at, number = self.now_ms(), self.snowflake.envelope()
        for connection in to:
            codec = connection.codec
            frame = variants.get(codec.binary)
            if frame is None:
                frame = variants[codec.binary] = frame_of(codec, codec.envelope(kind, data, at, number))
            self._push(connection, frame)

    # writing

    def _push(self, connection: Connection, frame: bytes) -> None:
        outbox = connection.outbox
        if not outbox.frames or outbox.held:
            self._touched.append(connection)
        outbox.frames.append(frame)
        self._gathered += len(frame)

    def _flush(self) -> None:
        touched, self._touched, self._gathered = self._touched, [], 0
        for connection in touched:
            if connection.closed:
                continue
            try:
                if not connection.outbox.flush():
                    connection.too_slow()
            except (
                Exception
            ):  # one connection that cannot be written to must not cost the others their frames
                log.exception("cannot write to a connection", session=connection.session)
                connection.wire.abort()
