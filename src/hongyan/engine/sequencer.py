"""The sequencer: a pure, total fold over journal records.

No I/O of its own, no clock (log time is in the records), no exception whatever a record says: what
cannot be done is `Rejected`. It reads the state before a record through a `View` with the changes of
the batch so far laid over it, and writes absolute rows into those `Changes`; so folding the same
records from the same state gives the same outcomes and the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from hongyan.engine import groups
from hongyan.engine.window import Window
from hongyan.protocol import records
from hongyan.protocol.names import is_direct_key
from hongyan.protocol.outcomes import Done, Duplicate, Outcome, Rejected, UserReady
from hongyan.protocol.state import Changes, Conversation, Device, Membership, Message, Sent, User

# A record that waited longer than this between admit and log may be the stray twin of a message that
# its client has long resent by another way: it is looked up like a `retry` (design.md, "Sequence").
LATE_MS = 10_000


class View(Protocol):
    """The part of the store that the fold reads, at exactly the offset before the batch."""

    def conversation(self, key: str) -> Conversation | None: ...
    def user(self, user: str) -> User | None: ...
    def membership(self, user: str, conversation: str) -> Membership | None: ...
    def find(self, sender: str, conversation: str, key: str) -> Sent | None: ...
    def members(self, group: str, after: int = 0, limit: int = 1000) -> list[tuple[int, str]]: ...
    def memberships(self, user: str, after: str = "", limit: int = 1000) -> list[tuple[str, Membership]]: ...


class Overlay:
    """The view with one batch's changes over it: the state between two records of the batch."""

    __slots__ = ("changes", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self.changes = Changes()

    def conversation(self, key: str) -> Conversation | None:
        return self.changes.conversations.get(key) or self.view.conversation(key)

    def user(self, user: str) -> User | None:
        return self.changes.users.get(user) or self.view.user(user)

    def membership(self, user: str, conversation: str) -> Membership | None:
        """The row of a member or an invited user; None for anyone else."""
        at = (user, conversation)
        if at in self.changes.memberships:
            return self.changes.memberships[at]
        return self.view.membership(user, conversation)

    def memberships(self, user: str) -> dict[str, Membership]:
        """Every row of the user, by conversation key."""
        rows: dict[str, Membership] = {}
        after = ""
        while page := self.view.memberships(user, after):
            rows.update(page)
            after = page[-1][0]
        for (owner, conversation), row in self.changes.memberships.items():
            if owner == user:
                if row is None:
                    rows.pop(conversation, None)
                else:
                    rows[conversation] = row
        return rows

    def first_member(self, group: str) -> str | None:
        """The member of longest standing."""
        changed = {place: user for (name, place), user in self.changes.members.items() if name == group}
        candidates = [(place, user) for place, user in changed.items() if user is not None]
        after = 0
        while page := self.view.members(group, after, 100):
            kept = next(((place, user) for place, user in page if place not in changed), None)
            if kept is not None:
                candidates.append(kept)
                break
            after = page[-1][0]
        return min(candidates)[1] if candidates else None


class Sequencer:
    """Folds one durable batch after the other: `fold`, then take `changes`."""

    def __init__(self, view: View, window: Window) -> None:
        self._view = view
        self._window = window
        self._state = Overlay(view)
        self._first = 0  # offset of the batch being folded

    @property
    def changes(self) -> Changes:
        """What the batch folded last has changed."""
        return self._state.changes

    def fold(self, batch: Sequence[records.Record], first: int, log_ms: int) -> list[Outcome]:
        """Fold the records with the offsets from `first` on; one outcome each."""
        self._state = Overlay(self._view)
        self._first = first
        self._window.forget(log_ms)
        send, other = self._send, self._other
        outcomes = [
            send(record, log_ms) if type(record) is records.Send else other(record) for record in batch
        ]
        self._window.close_batch(self._state.changes.sent, log_ms, first)
        return outcomes

    def remember(self, batch: Sequence[records.Record], first: int, log_ms: int) -> None:
        """Rebuild the window from a batch that the view has already (start-up)."""
        self._window.forget(log_ms)
        keys = []
        for record in batch:
            if type(record) is records.Send:
                key = (record.sender, record.conversation, record.key)
                sent = self._view.find(*key)
                if sent is not None and sent.id == record.id:
                    self._window.entries[key] = sent
                    keys.append(key)
            elif type(record) is records.DedupWindow:
                self._window.resize(record.span_ms, record.limit, first)
        self._window.close_batch(keys, log_ms, first)

    def _other(self, record: records.Record) -> Outcome:
        if isinstance(record, records.Cursors):
            return _cursors(self._state, record)
        if isinstance(record, records.Login):
            return _login(self._state, record)
        if isinstance(record, records.Register):
            return _register(self._state, record)
        if isinstance(record, records.DedupWindow):
            self._window.resize(record.span_ms, record.limit, self._first)
            return Done()
        return groups.fold(self._state, record)  # type: ignore[arg-type]

    def _send(self, record: records.Send, log_ms: int) -> Outcome:
        sender, name, at = record.sender, record.conversation, record.at
        key = (sender, name, record.key)
        recent = self._window.entries
        sent = recent.get(key)
        if sent is None and (record.retry or log_ms - at > LATE_MS):
            sent = self._view.find(*key)
        if sent is not None:  # before membership: a stored message is acknowledged also after leaving
            return Duplicate(name, sent)
        changes = self._state.changes
        conversation = changes.conversations.get(name) or self._view.conversation(name)
        if name[:1] == "#":
            if conversation is None:
                return Rejected("unknown_group", "no such group", "data.to")
            member = self._state.membership(sender, name)
            if member is None or not member.position:
                return Rejected("not_member", "you are not a member of this group", "data.to")
            seq = conversation.last_seq + 1
            changes.conversations[name] = Conversation(
                seq, at, conversation.name, conversation.join, conversation.owner, conversation.creator,
                conversation.members, conversation.next_position,
            )  # fmt: skip
        else:
            if conversation is None:
                problem = self._open_direct(record)
                if problem is not None:
                    return problem
                seq = 1
            else:
                seq = conversation.last_seq + 1
            changes.conversations[name] = Conversation(seq, at)
        message = Message(name, seq, record.id, at, sender, record.key, record.content_type, record.content)
        changes.messages.append(message)
        recent[key] = changes.sent[key] = Sent(seq, record.id, at)
        return message

    def _open_direct(self, record: records.Send) -> Rejected | None:
        """The first message of two users: both become members for good."""
        name, sender, state = record.conversation, record.sender, self._state
        a, _, b = name.partition("|")
        peer = b if a == sender else a
        if not (is_direct_key(name) and sender in (a, b)):
            return Rejected("invalid_field", "not a conversation of the sender", "data.to")
        if state.user(peer) is None:
            return Rejected("unknown_user", "no such user", "data.to")
        memberships = state.changes.memberships
        memberships[sender, name] = memberships[peer, name] = Membership(1, record.at, 1)
        return None


def _register(state: Overlay, record: records.Register) -> Outcome:
    if state.user(record.user) is not None:
        return Rejected("already_exists", "this user exists already", "user_id")
    state.changes.users[record.user] = User(record.at, record.password)
    return UserReady(record.user, True)


def _login(state: Overlay, record: records.Login) -> Outcome:
    """Create the user where needed and fix where a device starts (protocol.md, "Cursors and sync")."""
    user = state.user(record.user)
    created = user is None
    user = user or User(record.at)
    if record.device in user.devices:
        return UserReady(record.user, False)
    known = {device.number for device in user.devices.values()}
    number = user.next_device
    for conversation, row in state.memberships(record.user).items() if known else ():
        furthest = max((seq for of, seq in row.cursors.items() if of in known), default=0)
        if furthest:
            cursors = {**row.cursors, number: furthest}
            state.changes.memberships[record.user, conversation] = msgspec.structs.replace(
                row, cursors=cursors
            )
    devices = {**user.devices, record.device: Device(number, record.platform, record.at)}
    while len(devices) > record.max_devices:
        del devices[min(devices, key=lambda name: devices[name].last_used)]
    state.changes.users[record.user] = msgspec.structs.replace(user, devices=devices, next_device=number + 1)
    return UserReady(record.user, created)


def _cursors(state: Overlay, record: records.Cursors) -> Outcome:
    """Move cursors forward: never back, never past the last `seq`, never in a foreign conversation."""
    memberships, view = state.changes.memberships, state.view
    whose, user = None, None
    for name, device_id, conversation, seq in record.acks:
        if name != whose:  # a device's acknowledgements stand together
            whose, user = name, state.user(name)
        device = user.devices.get(device_id) if user is not None else None
        if user is None or device is None:
            continue
        at = (name, conversation)
        row = memberships[at] if at in memberships else view.membership(name, conversation)
        of = state.conversation(conversation) if row is not None and row.position else None
        if row is None or of is None:
            continue
        seq = min(seq, of.last_seq)
        if seq > row.cursors.get(device.number, 0) and seq >= row.first_seq:
            cursors = {**row.cursors, device.number: seq}
            if len(cursors) > len(user.devices):  # drop what forgotten devices left behind
                known = {device.number for device in user.devices.values()}
                cursors = {number: far for number, far in cursors.items() if number in known}
            memberships[at] = Membership(row.first_seq, row.joined_at, row.position, cursors)
    for name, device_id, ms in record.seen:
        user = state.user(name)
        if user is None:
            continue
        devices = user.devices
        device = devices.get(device_id)
        if device is not None and ms > device.last_used:
            devices = {**devices, device_id: Device(device.number, device.platform, ms)}
        state.changes.users[name] = msgspec.structs.replace(
            user, devices=devices, last_seen=max(ms, user.last_seen)
        )
    return Done()
