"""The newest changes, in memory until they are written down; every read looks here first."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from hongyan.protocol.state import Changes, Conversation, Membership, Message, Sent, User, opened

UNIT_ROWS = 1_000
UNIT_BYTES = 1 << 20
MISSING: Final[Any] = object()
_ROW_BYTES = 250  # of a row beside a message's content: Struct, strings, places in the dicts
_ID_BYTES = 40


class Unit:
    """Whole batches, merged, that are written as one. None deletes a row."""

    __slots__ = (
        "_by_key",
        "_by_user",
        "bytes",
        "conversations",
        "directs",
        "members",
        "memberships",
        "messages",
        "offset",
        "rows",
        "unstored",
        "users",
    )

    def __init__(self) -> None:
        self.offset = 0  # of the newest record in it
        self.rows = 0  # to write: roughly, a bound and no account; so are `bytes`
        self.bytes = 0
        self.messages: dict[str, list[Message]] = {}  # by conversation, in seq order
        self.conversations: dict[str, Conversation] = {}
        self.users: dict[str, User] = {}
        self.directs: dict[str, int] = {}  # by conversation
        self.memberships: dict[tuple[str, str], Membership | None] = {}  # by (user, conversation)
        self.members: dict[str, dict[int, str | None]] = {}  # group -> position -> user
        self.unstored: dict[int, list[int]] = {}  # batch's offset -> record ids
        # Made where somebody asks, for a resend or a sync: nearly every unit goes without.
        self._by_key: dict[tuple[str, str, str], Message] | None = None
        self._by_user: dict[str, dict[str, Membership | None]] | None = None

    def add(self, offset: int, changes: Changes, rows: int, size: int) -> None:
        self._by_key = self._by_user = None
        if not self.offset:  # mostly the only batch: nothing is copied
            self.conversations, self.directs = changes.conversations, changes.directs
        else:
            self.conversations.update(changes.conversations)
            self.directs.update(changes.directs)
        self.offset = offset
        self.users.update(changes.users)
        messages = self.messages
        for message in changes.messages:
            run = messages.get(message.conversation)
            if run is None:
                messages[message.conversation] = [message]
            else:
                run.append(message)
        self.memberships.update(changes.memberships)
        for (group, position), member in changes.members.items():
            self.members.setdefault(group, {})[position] = member
        if changes.unstored:
            self.unstored[offset] = changes.unstored
        self.rows += rows
        self.bytes += size

    def find(self, key: tuple[str, str, str]) -> Message | None:
        """The message of this (sender, conversation, key)."""
        if self._by_key is None:
            self._by_key = {
                (message.sender, message.conversation, message.key): message
                for run in self.messages.values()
                for message in run
            }
        return self._by_key.get(key)

    def membership(self, user: str, conversation: str) -> Any:
        """None: deleted; MISSING: not in this unit."""
        row = self.memberships.get((user, conversation), MISSING)
        if row is MISSING and conversation in self.directs and user in conversation.split("|"):
            return opened(self.directs[conversation])
        return row

    def memberships_of(self, user: str) -> dict[str, Membership | None]:
        """The user's changed rows, by conversation."""
        if self._by_user is None:
            self._by_user = {}
            for key, at in self.directs.items():
                for whose in key.split("|"):
                    self._by_user.setdefault(whose, {})[key] = opened(at)
            for (whose, key), row in self.memberships.items():
                self._by_user.setdefault(whose, {})[key] = row
        return self._by_user.get(user, {})

    @property
    def complete(self) -> bool:
        return self.rows >= UNIT_ROWS or self.bytes >= UNIT_BYTES

    def has_room(self, rows: int, size: int) -> bool:
        """A batch is never divided; one that is larger than a unit is a unit alone."""
        return not self.rows or (self.rows + rows <= UNIT_ROWS and self.bytes + size <= UNIT_BYTES)


def weigh(changes: Changes) -> tuple[int, int]:
    """Rows and bytes to write."""
    rows = 2 * len(changes.messages) + len(changes.conversations) + len(changes.users)
    rows += len(changes.directs) + len(changes.memberships) + len(changes.members)
    size = sum([len(message.content) for message in changes.messages]) + _ROW_BYTES * rows
    return rows + bool(changes.unstored), size + _ID_BYTES * len(changes.unstored)


class Tail:
    """Units in offset order. The oldest is written and dropped whole; the newest collects until it is complete."""

    def __init__(self) -> None:
        self.units: deque[Unit] = deque()
        self.pending_rows = 0
        self.pending_bytes = 0

    def add(self, offset: int, changes: Changes) -> None:
        rows, size = weigh(changes)
        if not self.units or not self.units[-1].has_room(rows, size):
            self.units.append(Unit())
        self.units[-1].add(offset, changes, rows, size)
        self.pending_rows += rows
        self.pending_bytes += size

    @property
    def ready(self) -> bool:
        """The oldest unit takes no more."""
        return len(self.units) > 1 or (bool(self.units) and self.units[0].complete)

    def drop(self) -> None:
        """Forget the oldest unit: it has been written."""
        unit = self.units.popleft()
        self.pending_rows -= unit.rows
        self.pending_bytes -= unit.bytes

    # MISSING: not in the tail. None: deleted.

    def conversation(self, key: str) -> Any:
        for unit in reversed(self.units):
            if key in unit.conversations:
                return unit.conversations[key]
        return MISSING

    def user(self, user: str) -> Any:
        for unit in reversed(self.units):
            if user in unit.users:
                return unit.users[user]
        return MISSING

    def membership(self, user: str, conversation: str) -> Any:
        for unit in reversed(self.units):
            row = unit.membership(user, conversation)
            if row is not MISSING:
                return row
        return MISSING

    def find(self, key: tuple[str, str, str]) -> Sent | None:
        for unit in reversed(self.units):
            message = unit.find(key)
            if message is not None:
                return message.sent()
        return None

    def unstored(self, offset: int) -> list[int] | None:
        """Of the batch that ends at `offset`; None: not in the tail."""
        for unit in self.units:
            if offset <= unit.offset and offset in unit.unstored:
                return unit.unstored[offset]
        return None

    def memberships(self, user: str) -> dict[str, Membership | None]:
        """The user's changed rows, by conversation."""
        merged: dict[str, Membership | None] = {}
        for unit in self.units:
            merged.update(unit.memberships_of(user))
        return merged

    def members(self, group: str) -> dict[int, str | None]:
        """The group's changed places, by position."""
        merged: dict[int, str | None] = {}
        for unit in self.units:
            merged.update(unit.members.get(group, {}))
        return merged

    def messages(self, conversation: str) -> list[Message]:
        """The conversation's messages in the tail, in seq order, without a gap."""
        return [message for unit in self.units for message in unit.messages.get(conversation, ())]
