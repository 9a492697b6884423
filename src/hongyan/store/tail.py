"""The newest changes, in memory until they are written down; every read looks here first."""

from __future__ import annotations

from collections import deque
from typing import Final, TypeVar

from hongyan.protocol.state import Changes, Conversation, Membership, Message, Sent, User

K = TypeVar("K")
V = TypeVar("V")
_MISSING: Final = object()
_MESSAGE_OVERHEAD = 500  # of a message beside its content: Struct, strings, places in the dicts


class Tail:
    """A queue of batches, and the same rows by key. A row is one object in both, so that writing an
    older row down never hides a newer one."""

    def __init__(self) -> None:
        self.batches: deque[tuple[int, Changes, int, int]] = deque()  # offset, changes, rows, bytes
        self.conversations: dict[str, Conversation] = {}
        self.users: dict[str, User] = {}
        self.memberships: dict[str, dict[str, Membership | None]] = {}
        self.members: dict[str, dict[int, str | None]] = {}
        self.messages: dict[str, deque[Message]] = {}
        self.sent: dict[tuple[str, str, str], Sent] = {}
        # The newest deletion of a row, by offset: None is one object for all of them
        self._left: dict[tuple[str, str], int] = {}
        self._freed: dict[tuple[str, int], int] = {}
        self.pending_rows = 0
        self.pending_bytes = 0

    def add(self, offset: int, changes: Changes) -> None:
        self.conversations.update(changes.conversations)
        self.users.update(changes.users)
        for (user, key), row in changes.memberships.items():
            self.memberships.setdefault(user, {})[key] = row
            if row is None:
                self._left[user, key] = offset
        for (group, position), member in changes.members.items():
            self.members.setdefault(group, {})[position] = member
            if member is None:
                self._freed[group, position] = offset
        messages = self.messages
        for message in changes.messages:
            kept = messages.get(message.conversation)
            if kept is None:
                kept = messages[message.conversation] = deque()
            kept.append(message)
        self.sent.update(changes.sent)
        rows, size = _weight(changes)
        self.batches.append((offset, changes, rows, size))
        self.pending_rows += rows
        self.pending_bytes += size

    def head(self, max_rows: int, max_bytes: int) -> tuple[int, int, Changes]:
        """(batches, last offset, merged changes) of the oldest batches: one at least, within the bounds."""
        count = rows = size = 0
        for offset, _, more_rows, more_size in self.batches:
            if count and (rows + more_rows > max_rows or size + more_size > max_bytes):
                break
            count, rows, size, last = count + 1, rows + more_rows, size + more_size, offset
        if count == 1:
            return 1, last, self.batches[0][1]
        merged = Changes()
        for place in range(count):
            changes = self.batches[place][1]
            merged.messages += changes.messages
            merged.sent.update(changes.sent)
            merged.conversations.update(changes.conversations)
            merged.users.update(changes.users)
            merged.memberships.update(changes.memberships)
            merged.members.update(changes.members)
        return count, last, merged

    def drop(self, count: int, written: Changes) -> None:
        """Forget the oldest `count` batches, whose rows, merged, are `written`."""
        for _ in range(count):
            last, _, rows, size = self.batches.popleft()
            self.pending_rows -= rows
            self.pending_bytes -= size
        for key, conversation in written.conversations.items():
            if self.conversations.get(key) is conversation:
                del self.conversations[key]
        for user, row in written.users.items():
            if self.users.get(user) is row:
                del self.users[user]
        for message in written.messages:
            kept = self.messages[message.conversation]
            kept.popleft()
            if not kept:
                del self.messages[message.conversation]
        for at, sent in written.sent.items():
            if self.sent.get(at) is sent:
                del self.sent[at]
        for of, membership in written.memberships.items():
            _forget(self.memberships, of, membership, self._left, last)
        for place, member in written.members.items():
            _forget(self.members, place, member, self._freed, last)


def _forget(
    kept: dict[str, dict[K, V | None]],
    at: tuple[str, K],
    row: V | None,
    deleted: dict[tuple[str, K], int],
    last: int,
) -> None:
    """Drop `row` of a write that ended at `last` from `kept`, unless a newer one has its place."""
    if row is None and at in deleted:
        if deleted[at] > last:
            return  # deleted again since
        del deleted[at]
    owner, name = at
    rows = kept.get(owner)
    if rows is not None and rows.get(name, _MISSING) is row:
        del rows[name]
        if not rows:
            del kept[owner]


def _weight(changes: Changes) -> tuple[int, int]:
    """(rows, bytes) of a batch, roughly: bounds, not accounts."""
    messages = changes.messages
    rows = 2 * len(messages) + len(changes.conversations) + len(changes.memberships)
    rows += len(changes.users) + len(changes.members)
    return rows, sum(len(message.content) for message in messages) + _MESSAGE_OVERHEAD * rows // 2
