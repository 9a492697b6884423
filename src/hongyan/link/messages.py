"""What crosses the link of two processes. MessagePack arrays that begin with a number for the kind.

Both ends are of one version: the supervisor forks them from one process. Sessions, addresses and times are as in
`base.py`; `call` is a number that the answer to a question repeats.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hongyan.errors import WireError
from hongyan.link.base import ConversationsPage, HistoryPage, PresenceState, Resumed, SyncPage
from hongyan.protocol.outcomes import GroupChanged
from hongyan.protocol.state import Message, Sent

A_MESSAGE = (
    50  # sessions in one: each may follow a thousand others, or be in five thousand groups of 65 bytes
)

# -- gateway to engine -----------------------------------------------------------------------------


class Send(msgspec.Struct, array_like=True, tag=1, gc=False):
    session: int
    ref: str
    to: str
    content_type: str
    content: bytes
    retry: bool


class Ack(msgspec.Struct, array_like=True, tag=2, gc=False):
    session: int
    address: str
    seq: int


class Login(msgspec.Struct, array_like=True, tag=3, gc=False):
    call: int
    session: int
    user: str
    device: str
    platform: str


class Logout(msgspec.Struct, array_like=True, tag=4, gc=False):
    session: int


class Ask(msgspec.Struct, array_like=True, tag=5):
    """A call of `EngineApi` that is answered: one of `ANSWERS`."""

    call: int
    session: int
    method: str
    arguments: list[Any]


class Sessions(msgspec.Struct, array_like=True, tag=9):
    """Some of those who are logged in: all of them come before `Hello`, so that no frame passes its limit."""

    sessions: list[Resumed]


class Hello(msgspec.Struct, array_like=True, tag=6):
    """What a gateway begins with, but for `Sessions`: its number (never used again by another process), the engine that
    it was linked to before ("": none), and the offset up to which it was told."""

    number: int
    epoch: str
    told: int


class Listening(msgspec.Struct, array_like=True, tag=7):
    """The gateway takes connections."""


class Figures(msgspec.Struct, array_like=True, tag=8):
    """The gateway's counters as they are now."""

    counters: dict[str, int | dict[str, int]]


# -- engine to gateway -----------------------------------------------------------------------------


class Stored(msgspec.Struct, array_like=True, tag=20, gc=False):
    """A new message. `session`: whose send it was, 0 for nobody's; it may be another gateway's."""

    session: int
    message: Message


class Repeated(msgspec.Struct, array_like=True, tag=21, gc=False):
    """What `session` sent is there already."""

    session: int
    ref: str
    sender: str
    conversation: str
    sent: Sent


class Rejection(msgspec.Struct, array_like=True, tag=22, gc=False):
    """The fold refused what `session` sent."""

    session: int
    ref: str
    code: str
    text: str
    field: str | None


class Changed(msgspec.Struct, array_like=True, tag=23):
    outcome: GroupChanged


class Told(msgspec.Struct, array_like=True, tag=24, gc=False):
    """Everything up to this offset of the journal that concerns the gateway has been told."""

    offset: int


class Refusal(msgspec.Struct, array_like=True, tag=25):
    """These sends (session, ref) were not stored, or nobody knows."""

    sends: list[tuple[int, str]]
    error: WireError


class Replace(msgspec.Struct, array_like=True, tag=26, gc=False):
    session: int


class Presence(msgspec.Struct, array_like=True, tag=27):
    sessions: list[int]
    states: dict[str, PresenceState]


class Reply(msgspec.Struct, array_like=True, tag=28):
    """`value` is, encoded once more, of the type that the question has in `ANSWERS`."""

    call: int
    value: bytes


class Failure(msgspec.Struct, array_like=True, tag=29):
    """`error` None: a defect, or damaged storage."""

    call: int
    error: WireError | None


class Welcome(msgspec.Struct, array_like=True, tag=30):
    """The answer to `Hello`. `epoch` names this engine; `secret` signs tokens; what comes is behind `offset`."""

    epoch: str
    secret: bytes
    offset: int


class Groups(msgspec.Struct, array_like=True, tag=34):
    """The groups of some sessions that go on: before `Restored`."""

    groups: list[tuple[int, list[str]]]


class Restored(msgspec.Struct, array_like=True, tag=31):
    """The sessions and topics that have to come back; the topics of those that may have missed something. What comes
    up to `Ready` was stored before, and is told to sessions of both engines: whose send it was, the gateway finds
    out."""

    away: list[int]
    away_topics: list[str]
    resync: list[str]


class Ready(msgspec.Struct, array_like=True, tag=32):
    """The engine takes what the gateway holds."""


class Scrape(msgspec.Struct, array_like=True, tag=33):
    """`Figures`, please."""


PRESENCE = dict[str, PresenceState]
ANSWERS: dict[str, Any] = {
    "create_group": dict[str, Any],
    "join_group": dict[str, Any],
    "leave_group": dict[str, Any],
    "invite": dict[str, Any],
    "sync": SyncPage,
    "history": HistoryPage,
    "conversations": ConversationsPage,
    "presence": PRESENCE,
}
LOGGED_IN = tuple[str, list[str]]  # the answer to `Login`: session_id, groups

ToEngine = Send | Ack | Login | Logout | Ask | Sessions | Hello | Listening | Figures
ToGateway = (
    Stored
    | Repeated
    | Rejection
    | Changed
    | Told
    | Refusal
    | Replace
    | Presence
    | Reply
    | Failure
    | Welcome
    | Groups
    | Restored
    | Ready
    | Scrape
)
decode_to_engine = msgspec.msgpack.Decoder(list[ToEngine]).decode
decode_to_gateway = msgspec.msgpack.Decoder(list[ToGateway]).decode
