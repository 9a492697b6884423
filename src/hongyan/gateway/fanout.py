"""What the engine tells, turned into frames: encoded once per codec and variant, never per recipient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import structlog

from hongyan.errors import WireError
from hongyan.gateway import frames
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

# Of what was told since the last write: past it all is written, so that no connection gathers much more.
EARLY_BYTES = 256 * 1024
_OVERHEAD_BYTES = 250  # of a payload beside a message's content

log = structlog.get_logger("hongyan.gateway")


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
        self._touched: set[Connection] = set()  # have something to write

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

    def tell(self, told: Iterable[Told], first: int = 0) -> None:
        stored, other = self._stored, self._other
        answered = gathered = 0
        for session, record, outcome in told:
            if session:
                answered += 1
            gathered += _OVERHEAD_BYTES
            try:
                if type(outcome) is Message:
                    gathered += len(outcome.content)
                    stored(session, outcome)
                else:
                    other(session, record, outcome)
            except Exception:  # one outcome that cannot be told must not hide the others
                log.exception("cannot tell an outcome", outcome=type(outcome).__name__)
                self._cut_off(session, outcome)
            # Between outcomes: writing may close a connection, which changes topics.
            if gathered > EARLY_BYTES:
                gathered = 0
                self._flush()
        self.in_flight -= answered
        self._flush()
        self.answered()

    def refuse(self, sends: Sequence[tuple[int, str]], error: WireError) -> None:
        self.in_flight -= len(sends)
        gathered = 0
        for session, ref in sends:
            gathered += _OVERHEAD_BYTES
            connection = self.sessions.get(session)
            if connection is not None:
                try:
                    self._push(connection, connection.error(error, ref))
                except Exception:
                    log.exception("cannot refuse a send", session=session)
            if gathered > EARLY_BYTES:
                gathered = 0
                self._flush()
        self._flush()
        self.answered()

    def replace(self, session: int) -> None:
        connection = self.sessions.get(session)
        if connection is not None:
            self.counters.replaced += 1
            self._close(connection, frames.REPLACED, "replaced by a newer login of this device")

    def presence(self, sessions: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        to = [connection for session in sessions if (connection := self.sessions.get(session)) is not None]
        try:
            self._broadcast(to, "presence", {"states": presence_data(states)})
        except Exception:
            log.exception("cannot tell of presence")
        self._flush()

    def carry(self, session: int, groups: Collection[str]) -> None:
        connection = self.sessions.get(session)
        if connection is None:
            return
        for topic in connection.topics.difference(groups, (f"@{connection.user}",)):
            self.unsubscribe(connection, topic)
        for topic in groups:
            self.subscribe(connection, topic)

    def resync(self, topics: Collection[str]) -> None:
        self._broadcast(self.carrying(topics), "resync", {})
        self._flush()

    def carrying(self, topics: Iterable[str]) -> set[Connection]:
        return {connection for topic in topics for connection in self.topics.get(topic, ())}

    def answered(self) -> None:
        """Called when sends have been answered (a drain may wait for the last)."""

    # one outcome

    def _cut_off(self, session: int, outcome: Outcome) -> None:
        """Close whoever should have heard of it: no push is dropped silently, they come back and find it by sync."""
        topics: set[str] = set()
        if isinstance(outcome, Message):
            name = outcome.conversation
            topics = {
                f"@{outcome.sender}",
                *([name] if name[0] == "#" else [f"@{user}" for user in name.split("|")]),
            }
        elif isinstance(outcome, GroupChanged):
            topics = {outcome.group, *(f"@{user}" for _, user in outcome.events)}
        missed = self.carrying(topics)
        origin = self.sessions.get(session)
        for connection in missed if origin is None else {origin, *missed}:
            self._close(connection, frames.INTERNAL, "internal error")

    @staticmethod
    def _close(connection: Connection, code: int, reason: str) -> None:
        """Never raises."""
        try:
            connection.close(code, reason)
        except Exception:
            log.exception("cannot close a connection", session=connection.session)
            connection.wire.abort()

    def _stored(self, session: int, message: Message) -> None:
        """Acknowledge to `session`, push to everyone else."""
        key, sender, topics = message.conversation, message.sender, self.topics
        own_address = "@" + sender
        if direct := key[0] != "#":
            a, _, b = key.partition("|")
            address = "@" + (b if a == sender else a)
        else:
            address = key
        origin = self.sessions.get(session)
        if origin is not None:
            payload = origin.codec.ack(message.key, address, message.seq, False, message.at, message.id)
            origin.outbox.payloads.append(payload)
            self._touched.add(origin)
            self.counters.acks_sent += 1
        to, own = topics.get(address), topics.get(own_address)
        if own is not None and len(own) == 1 and origin in own:
            own = None  # no other session of the sender's
        if direct:
            if to is not None and address != own_address:
                self._spread(to, own_address, message, None, False)
            if own is not None:
                self._spread(own, address, message, origin, True)
        elif to is not None:
            if own is not None:
                self._spread(own & to, key, message, origin, True)
                to = to - own
            self._spread(to, key, message, origin, False)

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
            self._push(connection, codec.ack(record.key, address, sent.seq, True, sent.at, sent.id))
        elif isinstance(outcome, Rejected):
            self.counters.messages_rejected += 1
            error = WireError(outcome.code, outcome.text, outcome.field)
            self._push(connection, connection.error(error, record.key))

    def _spread(
        self, to: Set[Connection], address: str, message: Message, origin: Connection | None, own: bool
    ) -> None:
        """Push to all but the origin, encoded once a codec. `own`: they are the sender's."""
        if len(to) == 1:  # as nearly always in a direct chat
            (only,) = to
            if only is not origin:
                self.counters.pushes += 1
                only.outbox.payloads.append(only.codec.message(address, message, own))
                self._touched.add(only)
            return
        self.counters.pushes += len(to) - (origin in to)
        made: dict[Codec, bytes] = {}
        touched = self._touched
        for connection in to:
            if connection is origin:
                continue
            codec = connection.codec
            payload = made.get(codec)
            if payload is None:
                payload = made[codec] = codec.message(address, message, own)
            connection.outbox.payloads.append(payload)
            touched.add(connection)

    def _group_changed(self, outcome: GroupChanged) -> None:
        for event, user in outcome.events:
            own = tuple(self.topics.get(f"@{user}", ()))
            for connection in own:
                if event == "joined":
                    if connection.entering in (outcome.group, ""):
                        connection.outbox.hold()
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
        made: dict[Codec, bytes] = {}
        at, number = self.now_ms(), self.snowflake.envelope()
        for connection in to:
            codec = connection.codec
            payload = made.get(codec)
            if payload is None:
                payload = made[codec] = codec.envelope(kind, data, at, number)
            self._push(connection, payload)

    # writing

    def _push(self, connection: Connection, payload: bytes) -> None:
        connection.outbox.payloads.append(payload)
        self._touched.add(connection)

    def _flush(self) -> None:
        touched, self._touched = self._touched, set()
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
