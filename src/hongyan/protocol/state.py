"""The rows of the view: what the records of the journal add up to. Immutable; a change is a new row.

Encoded as MessagePack arrays; fields are only ever added at the end, with a default.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec


class Sent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where the message of a (sender, conversation, key) went: what a duplicate is acknowledged with."""

    seq: int
    id: int
    at: int


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A stored message. `id` Snowflake, `at` its server time in ms, `content` JSON bytes,
    `key` the sender's `message_id`. (conversation, seq) is its place."""

    conversation: str
    seq: int
    id: int
    at: int
    sender: str
    key: str
    content_type: str
    content: bytes

    def sent(self) -> Sent:
        return Sent(self.seq, self.id, self.at)


class Conversation(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`last_seq` 0: no message yet. `last_at`: ms of the newest message. The rest is for groups:
    `owner` "" while the group is empty; `members` the count; `next_position` the next member's place
    in the order of joining (never used twice)."""

    last_seq: int
    last_at: int
    name: str = ""
    join: str = ""
    owner: str = ""
    creator: str = ""
    members: int = 0
    next_position: int = 1


class Membership(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One user in one conversation. `position` 0: invited only, not a member (groups);
    direct chats: `position` 1, `first_seq` 1. `cursors`: device number -> highest acknowledged seq.

    A remembered device without an entry stands where the furthest entry stands: there it started at its
    first login, and nothing has moved since, or `moved` would have given it an entry. (Those that were
    there before the conversation find no entry at all, and stand at its beginning.)"""

    first_seq: int
    joined_at: int
    position: int
    cursors: dict[int, int] = {}

    def cursor(self, device: int) -> int:
        """The highest seq that the device (by number) has acknowledged or started at; 0: none."""
        cursors = self.cursors
        if device in cursors or not cursors:
            return cursors.get(device, 0)
        return max(cursors.values())

    def moved(self, device: int, seq: int, remembered: Set[int]) -> Membership:
        """The row with the device at `seq`, and where each of the user's `remembered` devices stands said
        by an entry; those of forgotten devices are dropped."""
        if len(remembered) == 1:  # it is this device
            cursors = {}
        else:
            cursors = self.cursors.copy()
            if cursors.keys() != remembered:
                furthest = max(cursors.values(), default=0)
                cursors = {number: cursors.get(number, furthest) for number in sorted(remembered)}
        cursors[device] = seq
        return Membership(self.first_seq, self.joined_at, self.position, cursors)


def opened(at: int) -> Membership:
    """The row of either user of a direct chat whose first message was sent at `at` ms."""
    return Membership(1, at, 1)


class Device(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`number`: unique among the user's devices for ever, also after one was forgotten."""

    number: int
    platform: str
    last_used: int


class User(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`password`: argon2id hash, or "" (only tokens). `devices`: by device id. `groups`: how many
    groups the user is a member of. `last_seen`: ms, 0 never."""

    created_at: int
    password: str = ""
    devices: dict[str, Device] = {}
    next_device: int = 1
    groups: int = 0
    last_seen: int = 0


class Changes:
    """What one journal batch changes, as absolute rows; None deletes. Applied as one unit.

    messages: new messages in fold order; conversations: by key; users: by id;
    directs: ms of its first message, by the key of a direct chat that began: its two users have `opened` rows.
    memberships: by (user id, conversation key), over those; members: by (group address, position) -> user id.
    unstored: record ids of the batch's sends that made no message (refused, or there already).
    """

    __slots__ = ("conversations", "directs", "members", "memberships", "messages", "unstored", "users")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.conversations: dict[str, Conversation] = {}
        self.users: dict[str, User] = {}
        self.directs: dict[str, int] = {}
        self.memberships: dict[tuple[str, str], Membership | None] = {}
        self.members: dict[tuple[str, int], str | None] = {}
        self.unstored: list[int] = []
