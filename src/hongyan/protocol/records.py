"""What the journal holds: one Struct for each kind of change, in MessagePack arrays.

A record states what was *asked*, never what came of it: the outcome is the sequencer's, the same at
every replay. `id` is the record's Snowflake id, `at` the time it was admitted (ms since the Unix
epoch). `conversation` is a conversation key, `user`, `sender`, `device` are ids, `group` an address.
Limits that decide an outcome are in the record, so that a replay under other settings decides the same.
Fields are only ever added at the end, with a default: old journals stay readable.
"""

from __future__ import annotations

import msgspec


class Send(msgspec.Struct, array_like=True, tag="s", frozen=True, gc=False):
    """A message. `content` is JSON (UTF-8 bytes); `key` is the client's `message_id`."""

    id: int
    at: int
    sender: str
    conversation: str
    key: str
    content_type: str
    content: bytes
    retry: bool = False


class CreateGroup(msgspec.Struct, array_like=True, tag="g", frozen=True):
    """`join` is "open" or "invite"."""

    id: int
    at: int
    user: str
    group: str
    name: str
    join: str
    max_groups: int = 5000


class Join(msgspec.Struct, array_like=True, tag="j", frozen=True):
    id: int
    at: int
    user: str
    group: str
    max_members: int
    max_groups: int


class Leave(msgspec.Struct, array_like=True, tag="l", frozen=True):
    id: int
    at: int
    user: str
    group: str


class Invite(msgspec.Struct, array_like=True, tag="i", frozen=True):
    """`users` are ids."""

    id: int
    at: int
    user: str
    group: str
    users: list[str]


class Register(msgspec.Struct, array_like=True, tag="r", frozen=True):
    """A user with a password (an argon2id hash, never the password)."""

    id: int
    at: int
    user: str
    password: str


class Login(msgspec.Struct, array_like=True, tag="d", frozen=True):
    """A device's first login: creates the user where needed and fixes where the device starts.

    Past `max_devices` the one unused for longest is forgotten, but none of `in_use`: the user's devices
    that were online or logging in when this was admitted. (When a device was used is written at its
    login, its logout and once an hour, so that of one online for weeks is weeks old.)
    """

    id: int
    at: int
    user: str
    device: str
    platform: str
    max_devices: int = 100
    in_use: list[str] = []


class Acked(msgspec.Struct, array_like=True, tag="a", frozen=True):
    """What devices acknowledged: kept here, and in memory, until a `Cursors` record moves the rows.

    `acks`: (user, device, {conversation key: seq}).
    """

    id: int
    at: int
    acks: list[tuple[str, str, dict[str, int]]]


class Cursors(msgspec.Struct, array_like=True, tag="c", frozen=True):
    """Delivery cursors and last-seen times that move in the rows.

    `acks`: (user, device, {conversation key: seq}), no seq past the conversation's last when it was admitted.
    `seen`: (user, device, ms).
    """

    id: int
    at: int
    acks: list[tuple[str, str, dict[str, int]]]
    seen: list[tuple[str, str, int]]


class DedupWindow(msgspec.Struct, array_like=True, tag="w", frozen=True):
    """The duplicate window from here on: `span_ms` of log time, the newest `limit` messages.

    The journal always begins with a batch that holds one (`Window.trimmable`): so a replay, whose window
    begins empty there, decides by the same figures as the first run did.
    """

    id: int
    at: int
    span_ms: int
    limit: int


Record = Send | CreateGroup | Join | Leave | Invite | Register | Login | Acked | Cursors | DedupWindow
