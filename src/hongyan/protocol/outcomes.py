"""What came of a record: the sequencer's answer, which the gateway turns into frames.

Addresses (`group`) have their sigil, users are ids, `seq`s and counts are ints.
"""

from __future__ import annotations

import msgspec

from hongyan.protocol.state import Message, Sent


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """A message that is already there: acknowledge it again, deliver nothing."""

    conversation: str
    sent: Sent


class Rejected(msgspec.Struct, frozen=True):
    """Refused at this point of the order. `code` as in `errors.RETRY`; `field` dotted or None."""

    code: str
    text: str
    field: str | None = None


class GroupChanged(msgspec.Struct, frozen=True):
    """Answer to create, join, leave, invite; `first_seq` 0 where the user is no member.
    `events`: (event, user) to tell, in order, none where nothing happened (an idempotent repeat);
    `joined` / `left`: the user whose sessions now carry, or drop, the group's topic."""

    group: str
    name: str
    join: str
    owner: str
    members: int
    seq: int
    first_seq: int
    events: tuple[tuple[str, str], ...] = ()


class UserReady(msgspec.Struct, frozen=True):
    """Answer to register and login. `created`: the user is new."""

    user: str
    created: bool


class Noted(msgspec.Struct, frozen=True):
    """Answer to an `Acked` record: it stands in the batch that begins at `offset`."""

    offset: int


class Done(msgspec.Struct, frozen=True):
    """Nothing to say."""


# A new message stands for itself: acknowledge it to its sender, deliver it to everyone else.
Outcome = Message | Duplicate | Rejected | GroupChanged | UserReady | Noted | Done
