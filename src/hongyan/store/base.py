"""The store port: the view that a journal adds up to, written in batches with the journal's offset."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from hongyan.protocol.state import Changes, Conversation, Membership, Message, Sent, User


class Store(Protocol):
    """All reads see every applied change (tail and disk merged). What is on disk is always exactly
    the state at one offset: a crash loses a suffix of the changes, which the journal replays.
    Any read may raise DataDirectoryError: what it asked for is on disk and damaged."""

    @property
    def offset(self) -> int:
        """The offset applied last (in memory at least)."""

    @property
    def full(self) -> bool:
        """The tail is at its limit: admit says `busy` until it has been written down."""

    @property
    def refusing(self) -> bool:
        """Full, and the disk took nothing at the last try: more than a moment's `busy`."""

    def apply(self, offset: int, changes: Changes) -> None:
        """Take the changes of the batch that ends at `offset` (> the last), and own them: nobody else reads or
        writes them any more. A direct chat's first message comes with its entry in `directs`, and its memberships are
        never deleted. In memory at once, on disk later,
        whole batches in offset order. Never blocks for the disk, never raises for it."""

    def conversation(self, key: str) -> Conversation | None:
        """A direct chat's row says what its newest message says, and nothing else."""

    def conversations(self, names: Collection[str]) -> dict[str, Conversation]:
        """`conversation` of many at once: those that there are, by key."""

    def user(self, user: str) -> User | None: ...

    def membership(self, user: str, conversation: str) -> Membership | None: ...

    def find(self, sender: str, conversation: str, key: str) -> Sent | None:
        """The newest message of this sender with this key in the conversation, however old."""

    def unstored(self, offset: int) -> list[int]:
        """The record ids of the sends that made no message, of the batch that ends at `offset`: by these a restart
        tells which of the journal's sends are in the duplicate window. Kept until `forget`."""

    def forget(self, upto: int) -> None:
        """Drop what `unstored` says of batches up to `upto`, which the journal has no more; on a full disk another
        time."""

    def members(self, group: str, after: int = 0, limit: int = 1000) -> list[tuple[int, str]]:
        """(position, user) of a group's members, ascending from position > `after`."""

    def memberships(
        self, user: str, after: str = "", limit: int = 1000, groups: bool = False
    ) -> list[tuple[str, Membership]]:
        """(conversation key, row) of a user (invitations too: `position` 0), ascending from key > `after`; with
        `groups` no direct chats."""

    def messages(
        self, conversation: str, low: int, high: int, limit: int, newest: bool = False
    ) -> list[Message]:
        """Messages with low <= seq <= high, ascending; the first `limit` of them, or with `newest`
        the last `limit`. At most about 512 KiB of content a call, but always one where there is one:
        callers go on from what they got."""

    async def sync(self) -> int:
        """Write down the tail as it is now and make it survive power loss. Returns the offset that is safe."""

    async def close(self) -> None:
        """Write down the tail, sync, close. Idempotent."""
