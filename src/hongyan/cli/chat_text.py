"""Lines that people type and read. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from hongyan.protocol.names import is_group_address, is_user_address

# Controls, lone surrogates, and what would break a line: a terminal must never be driven by a message.
_UNSHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})
# They turn the rest of a line around, sender's name and all.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


# Close codes in words; a reason that only says when to come back is for programs.
_CLOSES = {
    1001: "the server went away", 1006: "the connection was lost", 1012: "the server restarts",
    1013: "the server has no room", 4408: "no sign of life", 4430: "read too slowly",
}  # fmt: skip
_HINT = re.compile(r"retry_after_ms=\d*")


def split_address(line: str) -> tuple[str | None, str]:
    """`@bob hello` is for @bob; any other line is for nobody in particular."""
    head, _, rest = line.partition(" ")
    if rest and (is_user_address(head) or is_group_address(head)):
        return head, rest
    return None, line


def shown(content: Any) -> str:
    """Content as one line: text as it is (control characters spelled out), anything else as JSON."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return "".join(c.encode("unicode_escape").decode() if _hidden(c) else c for c in text)


def why_lost(code: int, reason: str) -> str:
    """Of a connection that was closed with `code`, in words for people."""
    return shown(_HINT.sub("", reason).strip()) or _CLOSES.get(code) or f"closed with {code}"


def cleaned(line: str) -> str:
    """What was typed or pasted, without control characters but tab and line feed. Raises ValueError for
    what is no text: bytes that were not UTF-8 arrive as lone surrogates."""
    if any("\ud800" <= c <= "\udfff" for c in line):
        raise ValueError("that is not UTF-8: not sent")
    return "".join(c for c in line if c in "\n\t" or unicodedata.category(c) != "Cc").strip()


def _hidden(c: str) -> bool:
    return c != "\t" and (unicodedata.category(c) in _UNSHOWN or c in _TURNING)
