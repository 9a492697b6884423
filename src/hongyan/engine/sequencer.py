"""The sequencer: a pure, total fold over journal records.

No I/O of its own, no clock (log time is in the records), no exception whatever a record says: what
cannot be done is `Rejected`. It reads the state before a record through a `View` with the changes of
the batch so far laid over it, and writes absolute rows into those `Changes`; so folding the same
records from the same state gives the same outcomes and the same rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from hongyan.engine import groups
from hongyan.engine.window import Key, Mark, Window
from hongyan.protocol import records
from hongyan.protocol.outcomes import Done, Duplicate, Noted, Outcome, Rejected, UserReady
from hongyan.protocol.state import Changes, Conversation, Device, Membership, Message, Sent, User, opened

# A record that waited longer than this between admit and log may be the stray twin of a message that
# its client has long resent by another way: it is looked up like a `retry` (design.md, "Sequence").
LATE_MS = 10_000
# An acknowledgement is a use of its device, but rewrites the user's row no oftener than this.
USED_EVERY_MS = 3_600_000


class View(Protocol):
    """The part of the store that the fold reads, at exactly the offset before the batch."""

    def conversation(self, key: str) -> Conversation | None: ...
    def conversations(self, names: Collection[str]) -> dict[str, Conversation]: ...
    def user(self, user: str) -> User | None: ...
    def membership(self, user: str, conversation: str) -> Membership | None: ...
    def find(self, sender: str, conversation: str, key: str) -> Sent | None: ...
    def unstored(self, offset: int) -> list[int]: ...
    def members(self, group: str, after: int = 0, limit: int = 1000) -> list[tuple[int, str]]: ...


class Overlay:
    """The view with one batch's changes over it: the state between two records of the batch."""

    __slots__ = ("_by_key", "changes", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self.changes = Changes()
        self._by_key: dict[Key, Message] = {}  # the batch's messages, as far as anybody has asked

    def find(self, key: Key) -> Sent | None:
        """Where the message of this key went, in this batch or ever."""
        messages, known = self.changes.messages, self._by_key
        for message in messages[len(known) :]:  # no key twice: the second would have been a duplicate
            known[message.sender, message.conversation, message.key] = message
        found = known.get(key)
        return found.sent() if found is not None else self.view.find(*key)

    def conversation(self, key: str) -> Conversation | None:
        return self.changes.conversations.get(key) or self.view.conversation(key)

    def user(self, user: str) -> User | None:
        return self.changes.users.get(user) or self.view.user(user)

    def membership(self, user: str, conversation: str) -> Membership | None:
        """The row of a member or an invited user; None for anyone else."""
        at = (user, conversation)
        if at in self.changes.memberships:
            return self.changes.memberships[at]
        since = self.changes.directs.get(conversation)
        if since is not None and user in conversation.split("|"):
            return opened(since)
        return self.view.membership(user, conversation)

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
        state = self._state = Overlay(self._view)
        self._first = first
        self._window.forget(log_ms)
        window, changes = self._window, state.changes
        # Not what is looked up anyway: mostly it is a duplicate, and of those nothing else is read.
        in_time = log_ms - LATE_MS
        fresh = {r.conversation for r in batch if type(r) is records.Send and r.at >= in_time and not r.retry}
        stored = self._view.conversations(fresh)
        recent, odd = window.entries, window.odd
        conversations, messages = changes.conversations, changes.messages
        marks: list[Mark] = []
        outcomes: list[Outcome] = []
        for record in batch:
            if type(record) is not records.Send:
                outcomes.append(self._other(record))
                continue
            sender, name, at = record.sender, record.conversation, record.at
            key = (sender, name, record.key)
            mark: Mark = hash(key)
            anywhere = record.retry or at < in_time
            if mark in recent or anywhere or odd:
                sent = self._duplicate(key, anywhere)
                if sent is not None:  # before membership: a stored message is acknowledged also after leaving
                    outcomes.append(Duplicate(name, sent))
                    changes.unstored.append(record.id)
                    continue
                if mark in recent:
                    mark = key
                    odd.add(key)
            before = conversations.get(name) or stored.get(name)
            if before is None and anywhere:
                before = self._view.conversation(name)
            if before is None or name[:1] == "#":
                problem = self._group_send(record, before) if name[:1] == "#" else self._open_direct(record)
                if problem is not None:
                    outcomes.append(problem)
                    changes.unstored.append(record.id)
                    continue
            seq = before.last_seq + 1 if before is not None else 1
            if before is None or not before.members:
                conversations[name] = Conversation(seq, at)
            else:
                conversations[name] = msgspec.structs.replace(before, last_seq=seq, last_at=at)
            message = Message(
                name, seq, record.id, at, sender, record.key, record.content_type, record.content
            )
            messages.append(message)
            outcomes.append(message)
            recent[mark] = record.id  # what Window.add does, without a call
            marks.append(mark)
        window.close_batch(marks, log_ms, first)
        return outcomes

    def _duplicate(self, key: Key, anywhere: bool) -> Sent | None:
        """Where the message of this key went that was stored already: in the window, or ever."""
        sent = self._state.find(key)
        return sent if sent is not None and (anywhere or self._window.names(key, sent.id)) else None

    def remember(self, batch: Sequence[records.Record], first: int, log_ms: int, trimmed: bool) -> None:
        """Rebuild the window from a batch that the view has already (start-up).

        What stands before the first DedupWindow record of a journal that was `trimmed` is left of a trim that a
        crash cut off: the window had forgotten it, and under other figures would not forget it again. In one that
        never was, it came before the disk had room for that record.
        """
        noted = self._window.newest_note or any(type(record) is records.DedupWindow for record in batch)
        if trimmed and not noted:
            return
        self._window.forget(log_ms)
        marks = []
        unstored = frozenset(self._view.unstored(first + len(batch) - 1))
        for record in batch:
            if type(record) is records.Send:
                if record.id not in unstored:
                    key = (record.sender, record.conversation, record.key)
                    marks.append(self._window.add(key, record.id))
            elif type(record) is records.DedupWindow:
                self._window.resize(record.span_ms, record.limit, first)
        self._window.close_batch(marks, log_ms, first)

    def _other(self, record: records.Record) -> Outcome:
        if isinstance(record, records.Cursors):
            return _cursors(self._state, record)
        if isinstance(record, records.Acked):
            return Noted(self._first)
        if isinstance(record, records.Login):
            return _login(self._state, record)
        if isinstance(record, records.Register):
            return _register(self._state, record)
        if isinstance(record, records.DedupWindow):
            self._window.resize(record.span_ms, record.limit, self._first)
            return Done()
        return groups.fold(self._state, record)  # type: ignore[arg-type]

    def _group_send(self, record: records.Send, group: Conversation | None) -> Rejected | None:
        if group is None:
            return Rejected("unknown_group", "no such group", "data.to")
        member = self._state.membership(record.sender, record.conversation)
        if member is None or not member.position:
            return Rejected("not_member", "you are not a member of this group", "data.to")
        return None

    def _open_direct(self, record: records.Send) -> Rejected | None:
        """The first message of two users: both become members for good."""
        name, sender, state = record.conversation, record.sender, self._state
        a, _, b = name.partition("|")
        peer = b if a == sender else a
        # In the order of `direct_key`; that the peer is a user says that what stands there is an id.
        if (sender != a and sender != b) or a > b:
            return Rejected("invalid_field", "not a conversation of the sender", "data.to")
        changes = state.changes
        if peer not in changes.users and state.view.user(peer) is None:
            return Rejected("unknown_user", "no such user", "data.to")
        changes.directs[name] = record.at
        return None


def _register(state: Overlay, record: records.Register) -> Outcome:
    if state.user(record.user) is not None:
        return Rejected("already_exists", "this user exists already", "user_id")
    state.changes.users[record.user] = User(record.at, record.password)
    return UserReady(record.user, True)


def _login(state: Overlay, record: records.Login) -> Outcome:
    """Create the user where needed and remember the device. Where it starts (protocol.md, "Cursors and
    sync") takes no row: `Membership.cursor` knows a device that no entry names."""
    user = state.user(record.user)
    created = user is None
    user = user or User(record.at)
    if record.device in user.devices:
        return UserReady(record.user, False)
    number = user.next_device
    devices = {**user.devices, record.device: Device(number, record.platform, record.at)}
    in_use = {*record.in_use, record.device}
    idle = sorted(devices.keys() - in_use, key=lambda name: (devices[name].last_used, devices[name].number))
    for name in idle[: max(0, len(devices) - record.max_devices)]:
        del devices[name]
    state.changes.users[record.user] = msgspec.structs.replace(user, devices=devices, next_device=number + 1)
    return UserReady(record.user, created)


def _cursors(state: Overlay, record: records.Cursors) -> Outcome:
    """Move cursors forward: never back, never in a foreign conversation."""
    memberships, current = state.changes.memberships, state.membership
    for name, device_id, acks in record.acks:
        number, remembered = _device_in_use(state, name, device_id, record.at)
        if number is None:
            continue
        for conversation, seq in acks.items():
            row = current(name, conversation)
            if row is None or not row.position:
                continue
            if seq >= row.first_seq and seq > row.cursor(number):
                memberships[name, conversation] = row.moved(number, seq, remembered)
    for name, device_id, ms in record.seen:
        user = state.user(name)
        if user is None:
            continue
        user = _used(state, name, user, device_id, ms)
        state.changes.users[name] = msgspec.structs.replace(user, last_seen=max(ms, user.last_seen))
    return Done()


def _device_in_use(state: Overlay, name: str, device_id: str, at: int) -> tuple[int | None, frozenset[int]]:
    """The device's number, noting that it was in use, and those of all the user's devices; None: forgotten."""
    user = state.user(name)
    device = user.devices.get(device_id) if user is not None else None
    if user is None or device is None:
        return None, frozenset()
    if at - device.last_used > USED_EVERY_MS:
        user = _used(state, name, user, device_id, at)
    return device.number, frozenset([each.number for each in user.devices.values()])


def _used(state: Overlay, name: str, user: User, device_id: str, at: int) -> User:
    """Note that the user's device was in use at `at` ms. Returns the row as it is now."""
    device = user.devices.get(device_id)
    if device is None or at <= device.last_used:
        return user
    devices = {**user.devices, device_id: Device(device.number, device.platform, at)}
    user = state.changes.users[name] = msgspec.structs.replace(user, devices=devices)
    return user
