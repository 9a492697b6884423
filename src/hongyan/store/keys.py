"""Keys of the view's rows. Ids, group and conversation names are ASCII without NUL, so NUL separates;
a client's `message_id` may hold anything and stands last. Numbers are big-endian, so rows sort by them."""

from __future__ import annotations

import struct

OFFSET = b"x\x00offset"
IDENTITY = b"x\x00identity"
VERSION = b"x\x00version"
UNSTORED = b"s"  # the prefix of these rows

_number = struct.Struct(">Q").pack


def conversation(key: str) -> bytes:
    return b"c" + key.encode()


def user(user: str) -> bytes:
    return b"u" + user.encode()


def memberships(user: str) -> bytes:
    """The prefix of a user's rows; a conversation key follows."""
    return f"p{user}\0".encode()


def membership(user: str, conversation: str) -> bytes:
    return f"p{user}\0{conversation}".encode()


def members(group: str) -> bytes:
    """The prefix of a group's members; `position` follows."""
    return f"g{group}\0".encode()


def run(conversation: str, first: int) -> bytes:
    """Of the run that begins with `first`. (`messages` and `number` at once: it is made for every message.)"""
    return f"m{conversation}\0".encode() + _number(first)


def messages(conversation: str) -> bytes:
    """The prefix of a conversation's runs; the first seq follows."""
    return f"m{conversation}\0".encode()


def sent(sender: str, conversation: str, key: str) -> bytes:
    return f"k{conversation}\0{sender}\0{key}".encode()


def unstored(offset: int) -> bytes:
    """Of the batch that ends at `offset`."""
    return UNSTORED + _number(offset)


def number(value: int) -> bytes:
    return _number(value)


def read_number(raw: bytes) -> int:
    return int.from_bytes(raw)
