"""Ids, addresses and conversation keys (protocol.md, "Envelope").

An *id* is bare (`alice`), an *address* has a sigil (`@alice`, `#team`). A *conversation key* names a
conversation the same way for everyone: `#team` for a group, `alice|bob` (sorted) for a direct chat.
A viewer sees a conversation under an address: bob sees `alice|bob` as `@alice`.
"""

from __future__ import annotations

import re

_ID = re.compile(r"[A-Za-z0-9_.\-]{1,64}", re.ASCII)
match_address = re.compile(r"[@#][A-Za-z0-9_.\-]{1,64}", re.ASCII).fullmatch
RESERVED_PREFIX = "hongyan."


def is_id(value: str) -> bool:
    """True for 1 to 64 of `A-Za-z0-9_.-`. Reserved ids are ids too; see `is_reserved`."""
    return _ID.fullmatch(value) is not None


def is_reserved(value: str) -> bool:
    """True for ids that only the server may use (`hongyan.…`)."""
    return value.startswith(RESERVED_PREFIX)


def is_user_address(value: str) -> bool:
    return value[:1] == "@" and _ID.fullmatch(value, 1) is not None


def is_group_address(value: str) -> bool:
    return value[:1] == "#" and _ID.fullmatch(value, 1) is not None


def is_address(value: str) -> bool:
    """True for a user's or a group's address."""
    return match_address(value) is not None


def direct_key(a: str, b: str) -> str:
    """The conversation key of the direct chat of users `a` and `b` (ids), in either order."""
    return f"{a}|{b}" if a <= b else f"{b}|{a}"


def conversation_key(viewer: str, address: str) -> str:
    """The key of what `viewer` (an id) calls `address` (valid `@user` or `#group`)."""
    if address[0] == "#":
        return address
    other = address[1:]
    return f"{viewer}|{other}" if viewer <= other else f"{other}|{viewer}"


def address_for(viewer: str, key: str) -> str:
    """The address under which `viewer` sees the conversation `key`. Inverse of `conversation_key`."""
    if key[0] == "#":
        return key
    a, _, b = key.partition("|")
    return f"@{b}" if a == viewer else f"@{a}"
