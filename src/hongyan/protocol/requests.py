"""Requests: the types that a client may send, with what each field may be (protocol.md, "The seven core
types" and "extensions"). Decoding is in decode.py; the checks that a type cannot say are here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Raw

from hongyan.errors import WireError, refused
from hongyan.protocol.names import (
    is_address,
    is_group_address,
    is_id,
    is_reserved,
    is_user_address,
    match_address,
)

MAX_MESSAGE_ID = 64
MAX_USERS = 100
MAX_MAP = 5_000
MAX_NAME = 128
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9_.+/\-]{1,64}", re.ASCII).fullmatch
_MAX_REMEMBERED = 1_000
GOOD_CONTENT_TYPES: set[str] = set()  # seen before: looked up, which costs a fifth of the pattern
SEQ_CEILING = 2**63 - 1  # a larger seq is clamped, as any seq past the last is

Limit = Annotated[int, Meta(ge=1, le=500)]
Seq = Annotated[int, Meta(ge=0)]
MessageId = Annotated[str, Meta(min_length=1, max_length=MAX_MESSAGE_ID)]

# On the wire `content` is kept unparsed; `decode` puts the checked JSON bytes in its place.
if TYPE_CHECKING:
    Content = bytes
    OptionalMessageId = str | None
else:
    Content = Raw
    OptionalMessageId = MessageId  # left out it is None, but a null on the wire is no message_id


class BadRequest(Exception):
    """What a client sent is no request. `ref`: its `message_id`, `kind`: its type, where they could be read."""

    def __init__(self, error: WireError, ref: str | None, kind: str | None = None) -> None:
        super().__init__(error.text)
        self.error = error
        self.ref = ref
        self.kind = kind


class LoginData(msgspec.Struct):
    token: str
    device_id: str
    platform: Annotated[str, Meta(min_length=1)] = ""  # left out; an empty one is refused


class SendData(msgspec.Struct, gc=False):
    to: str
    content_type: str
    content: Content
    retry: bool = False


class AckData(msgspec.Struct, gc=False):
    """Either form on the wire. Checked: `acks` where it was given, else `conversation` and `seq`."""

    conversation: str = ""
    seq: Seq | None = None
    acks: dict[str, Seq] | None = None


class SyncData(msgspec.Struct):
    limit: Limit = 200
    cursors: dict[str, Seq] = {}
    page: str | None = None


class GroupData(msgspec.Struct):
    group: str


class CreateGroupData(msgspec.Struct):
    group: str | None = None
    name: str = ""
    join: str = "open"


class InviteData(msgspec.Struct):
    group: str
    users: list[str]


class HistoryData(msgspec.Struct):
    conversation: str
    before: Seq | None = None
    after: Seq | None = None
    limit: Limit = 50


class ConversationsData(msgspec.Struct):
    limit: Limit = 50
    page: str | None = None


class PresenceData(msgspec.Struct):
    users: list[str]
    subscribe: bool | None = None


class Request(msgspec.Struct, tag_field="type", gc=False):
    message_id: OptionalMessageId = None


class Empty(msgspec.Struct):
    pass


class Login(Request, tag="login", kw_only=True):
    data: LoginData


class Heartbeat(Request, tag="heartbeat", kw_only=True):
    data: Empty = msgspec.field(default_factory=Empty)


class SendMessage(Request, tag="send_message", kw_only=True):
    message_id: MessageId  # required here
    data: SendData


class Ack(Request, tag="ack", kw_only=True):
    data: AckData


class SyncOffline(Request, tag="sync_offline", kw_only=True):
    data: SyncData = msgspec.field(default_factory=SyncData)


class JoinGroup(Request, tag="join_group", kw_only=True):
    data: GroupData


class LeaveGroup(Request, tag="leave_group", kw_only=True):
    data: GroupData


class CreateGroup(Request, tag="create_group", kw_only=True):
    data: CreateGroupData = msgspec.field(default_factory=CreateGroupData)


class Invite(Request, tag="invite", kw_only=True):
    data: InviteData


class History(Request, tag="history", kw_only=True):
    data: HistoryData


class Conversations(Request, tag="conversations", kw_only=True):
    data: ConversationsData = msgspec.field(default_factory=ConversationsData)


class Presence(Request, tag="presence", kw_only=True):
    data: PresenceData


AnyRequest = (
    Login | Heartbeat | SendMessage | Ack | SyncOffline | JoinGroup | LeaveGroup | CreateGroup | Invite | History
    | Conversations | Presence
)  # fmt: skip
TYPES: dict[str, type[Request]] = {
    str(each.__struct_config__.tag): each
    for each in (
        Login, Heartbeat, SendMessage, Ack, SyncOffline, JoinGroup, LeaveGroup, CreateGroup, Invite, History,
        Conversations, Presence,
    )
}  # fmt: skip


def _need(holds: bool, field: str, text: str, code: str = "invalid_field") -> None:
    if not holds:
        raise refused(code, text, field)


def _login(data: LoginData) -> None:
    _need(is_id(data.device_id), "data.device_id", "a device_id is 1 to 64 of A-Za-z0-9_.-")
    _need(not is_reserved(data.device_id), "data.device_id", "ids that start with hongyan. are the server's")
    _need(not data.platform or is_id(data.platform), "data.platform", "a platform is 1 to 64 of A-Za-z0-9_.-")


def _send(data: SendData) -> None:
    if match_address(data.to) is None:
        raise refused("invalid_field", "to is @user or #group", "data.to")
    if data.content_type not in GOOD_CONTENT_TYPES:
        _content_type(data.content_type)


def _content_type(name: str) -> None:
    _need(_CONTENT_TYPE(name) is not None, "data.content_type", "a content_type is 1 to 64 of A-Za-z0-9_.+/-")
    _need(not name.startswith("hongyan."), "data.content_type", "hongyan.* is reserved")
    if len(GOOD_CONTENT_TYPES) < _MAX_REMEMBERED:
        GOOD_CONTENT_TYPES.add(name)


def _ack(data: AckData) -> None:
    name, seq, acks = data.conversation, data.seq, data.acks
    if acks is None:
        _need(bool(name) or seq is not None, "data.acks", "nothing named")
        _need(bool(name), "data.conversation", "conversation is missing")
        _need(seq is not None, "data.seq", "seq is missing")
        data.seq = min(seq or 0, SEQ_CEILING)
        return
    _need(len(acks) <= MAX_MAP, "data.acks", f"at most {MAX_MAP} conversations", "too_large")
    if seq is not None:
        _need(bool(name), "data.conversation", "conversation is missing")
        acks[name] = max(seq, acks.get(name, 0))
    else:
        _need(bool(acks) or not name, "data.seq", "seq is missing")
    data.acks = _positions(acks)


def _positions(named: dict[str, int]) -> dict[str, int]:
    """Drop what is no address: it cannot be a conversation of the user's. Clamp what passes 64 bits."""
    return {name: min(seq, SEQ_CEILING) for name, seq in named.items() if is_address(name)}


def _sync(data: SyncData) -> None:
    _need(len(data.cursors) <= MAX_MAP, "data.cursors", f"at most {MAX_MAP} conversations", "too_large")
    data.cursors = _positions(data.cursors)


def _group(data: GroupData) -> None:
    _need(is_group_address(data.group), "data.group", "a group is # and 1 to 64 of A-Za-z0-9_.-")


def _create_group(data: CreateGroupData) -> None:
    if data.group is not None:
        _need(is_group_address(data.group), "data.group", "a group is # and 1 to 64 of A-Za-z0-9_.-")
        _need(
            not is_reserved(data.group[1:]),
            "data.group",
            "ids that start with hongyan. are the server's",
            "forbidden",
        )
    _need(len(data.name) <= MAX_NAME, "data.name", f"a name has {MAX_NAME} characters at most", "too_large")
    _need(data.join in ("open", "invite"), "data.join", "join is open or invite")


def _users(users: list[str]) -> None:
    _need(len(users) <= MAX_USERS, "data.users", f"at most {MAX_USERS} users", "too_large")
    _need(all(map(is_user_address, users)), "data.users", "users are addresses such as @alice")


def _invite(data: InviteData) -> None:
    _need(is_group_address(data.group), "data.group", "a group is # and 1 to 64 of A-Za-z0-9_.-")
    _users(data.users)


def _history(data: HistoryData) -> None:
    _need(is_address(data.conversation), "data.conversation", "a conversation is @user or #group")
    data.before = None if data.before is None else min(data.before, SEQ_CEILING)
    data.after = None if data.after is None else min(data.after, SEQ_CEILING)


# What the types above cannot say, by request type. Each raises Refused.
CHECKS: dict[type[Request], Callable[[Any], None]] = {
    Login: _login,
    SendMessage: _send,
    Ack: _ack,
    SyncOffline: _sync,
    JoinGroup: _group,
    LeaveGroup: _group,
    CreateGroup: _create_group,
    Invite: _invite,
    History: _history,
    Presence: lambda data: _users(data.users),
}
