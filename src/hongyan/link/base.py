"""The two sides of the link between gateways and the engine.

`EngineApi` is what a gateway may ask, `GatewayApi` what the engine tells. Sessions are named by an int
that the gateway chooses (unique in the process); nothing else of a connection crosses the link, so the
same calls can be batched over a Unix socket. Everything runs on one event loop; sync calls never block.
Addresses have their sigil, users and devices are ids. Any call that answers may raise `Refused`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from hongyan.errors import WireError
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import Record
from hongyan.protocol.state import Message

# One outcome to tell: the session that waits for it (0: no one does; a command is answered by its
# future), the record, and what came of it. A send's `ref` is its record's `key`.
Told = tuple[int, Record, Outcome]


class LoggedIn(NamedTuple):
    """Answer to a login. `groups`: addresses of those that the user is a member of at that point of what is told; None:
    the session carries them already (`LinkedGateway.carry`)."""

    session_id: str
    groups: Sequence[str] | None


class Item(msgspec.Struct, array_like=True, frozen=True):
    """A message as one viewer sees it in sync or history: `conversation` is the viewer's address;
    `own`: the viewer sent it (carries `key`)."""

    conversation: str
    message: Message
    own: bool


class SyncPage(msgspec.Struct, array_like=True, frozen=True):
    """`page` None: complete (`has_more` False)."""

    items: Sequence[Item]
    has_more: bool
    page: str | None


class HistoryPage(msgspec.Struct, array_like=True, frozen=True):
    items: Sequence[Item]
    has_more: bool


class ConversationItem(msgspec.Struct, array_like=True, frozen=True):
    conversation: str
    last_seq: int
    first_seq: int
    acked_seq: int
    last_message: Item | None


class ConversationsPage(msgspec.Struct, array_like=True, frozen=True):
    items: Sequence[ConversationItem]
    has_more: bool
    page: str | None


class PresenceState(msgspec.Struct, array_like=True, frozen=True):
    """`last_seen` in ms, None while online or unknown."""

    online: bool
    last_seen: int | None


class Resumed(msgspec.Struct, array_like=True):
    """A session that was logged in with the engine before, or over the link before. `followed`: users whose presence
    it follows, and whether it takes them to be online."""

    session: int
    user: str
    device: str
    session_id: str
    followed: dict[str, bool]


class Gap(NamedTuple):
    """What came of records that a gateway was not told of: `messages` in fold order; `away`, `resync`: topics whose
    connections have to come back, or to ask for what they may have missed."""

    messages: Sequence[Message]
    away: Collection[str]
    resync: Collection[str]


class GatewayApi(Protocol):
    """What the engine tells its gateway. Must not raise, must not block."""

    def tell(self, told: Iterable[Told], first: int = 0) -> None:
        """Outcomes of a batch, one for each of its records, in fold order, after the store has them. `first`: the
        journal's offset of the first. Per outcome:

        Message -> `ack` to the session (unless 0), push `message` to every other session of the
        conversation's users (topics `@user` of a direct chat, `#group`); the sender's other sessions
        get it with `key`. Duplicate -> `ack` with duplicate true to the session. Rejected -> `error`.
        GroupChanged -> first update the topics of the `joined` / `left` user's sessions, then push
        `group_event`s. Done, UserReady -> nothing.
        """

    def refuse(self, sends: Sequence[tuple[int, str]], error: WireError) -> None:
        """`error` to each of these sends (session, ref): `unavailable`, the batch could not be made durable."""

    def replace(self, session: int) -> None:
        """Close with 4409: the device logged in elsewhere. The engine forgets the session when this returns: until
        then it takes the acknowledgements that were read."""

    def presence(self, sessions: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        """Push `presence` (keys are addresses) to each of these."""


class EngineApi(Protocol):
    """What a gateway may ask."""

    async def login(self, session: int, user: str, device: str, platform: str) -> LoggedIn:
        """The gateway carries the topic `@user` before it calls, and the groups in the same step in which this
        returns: what is told later comes after the answer, so no change of membership falls between. Raises
        Refused (`limit_exceeded`, `busy`, `unavailable`)."""

    def logout(self, session: int) -> None:
        """The connection is gone. Idempotent; unknown sessions are ignored."""

    def send(self, session: int, ref: str, to: str, content_type: str, content: bytes, retry: bool) -> None:
        """Admit a message (checked: valid address, JSON content within limits). Answered through
        `GatewayApi.tell` or `.refuse` within 10 s; raises Refused (`busy`, `unavailable`) at once."""

    def ack(self, session: int, address: str, seq: int) -> None:
        """A cumulative acknowledgement (`seq` >= 0). Clamped, never backwards; what is no conversation of
        the user's, or no address at all, is skipped."""

    async def create_group(self, session: int, group: str | None, name: str, join: str) -> dict[str, Any]:
        """Returns the answer's `data` without `ref`; so do the next three."""

    async def join_group(self, session: int, group: str) -> dict[str, Any]: ...

    async def leave_group(self, session: int, group: str) -> dict[str, Any]: ...

    async def invite(self, session: int, group: str, users: Sequence[str]) -> dict[str, Any]:
        """`users` are addresses."""

    async def sync(self, session: int, limit: int, cursors: Mapping[str, int], page: str | None) -> SyncPage:
        """At most 256 KiB of content a page, but always one item where there is one."""

    async def history(
        self, session: int, conversation: str, before: int | None, after: int | None, limit: int
    ) -> HistoryPage: ...

    async def conversations(self, session: int, limit: int, page: str | None) -> ConversationsPage: ...

    async def presence(
        self, session: int, users: Sequence[str], subscribe: bool | None
    ) -> dict[str, PresenceState]:
        """States by address. Raises Refused `limit_exceeded` past 1,000 subscriptions."""


class ServingEngine(EngineApi, Protocol):
    """What the engine's side of a link needs beside that."""

    @property
    def offset(self) -> int:
        """Everything up to this offset of the journal has been told."""

    def resume(self, resumed: Resumed, same: bool) -> Sequence[str] | None:
        """Take the session as it was, without a word to anyone. Returns the user's groups; None where it cannot go
        on (`GatewayApi.replace` has been called where a newer one of the device is there). `same`: it was this
        engine's, before its link ended."""

    def gap_after(self, offset: int) -> Gap | None:
        """What came of the records behind `offset`. None: that cannot be told any more. Blocks."""


class LinkedGateway(GatewayApi, Protocol):
    """What the gateway's side of a link needs beside that."""

    def carry(self, session: int, groups: Collection[str]) -> None:
        """Have the session carry exactly these groups."""

    def send_away(self, sessions: Collection[int] | None = None, topics: Collection[str] = ()) -> None:
        """Close these, and those that carry one of the topics (None: all), with 1012 and a spread-out delay."""

    def resync(self, topics: Collection[str]) -> None:
        """Push `resync` to those that carry one of the topics."""
