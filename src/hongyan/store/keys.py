"""Keys of the view's rows. Ids, group and conversation names are ASCII without NUL, so NUL separates;
a client's `message_id` may hold anything and stands last. Numbers are big-endian, so rows sort by them."""

from __future__ import annotations

import struct

OFFSET = b"x\x00offset"
IDENTITY = b"x\x00identity"
VERSION = b"x\x00version"

_number = struct.Struct(">Q").pack


def conversation(key: str) -> bytes:
    return b"c" + key.encode()


def user(user: str) -> bytes:
    return b"u" + user.encode()


def memberships(user: str) -> bytes:
    """The prefix of a user's rows; a conversation key follows."""
    return b"p" + user.encode() + b"\x00"


def members(group: str) -> bytes:
    """The prefix of a group's members; `position` follows."""
    return b"g" + group.encode() + b"\x00"


def messages(conversation: str) -> bytes:
    """The prefix of a conversation's runs; the first seq follows."""
    return b"m" + conversation.encode() + b"\x00"


def sent(sender: str, conversation: str, key: str) -> bytes:
    return b"k" + conversation.encode() + b"\x00" + sender.encode() + b"\x00" + key.encode()


def number(value: int) -> bytes:
    return _number(value)


def read_number(raw: bytes) -> int:
    return int.from_bytes(raw)
