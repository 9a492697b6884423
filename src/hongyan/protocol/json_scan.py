"""Look into JSON text without parsing what it holds, however deep it nests. Iterative, for any input."""

from __future__ import annotations

import json
import re

# The unrolled form of a string: one step a run of plain characters, not one a character.
_MARK = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]')
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')
_BLANK = " \t\r\n"


def shallow(text: str, keep: int) -> str:
    """`text` with the arrays and objects deeper than `keep` levels replaced by null."""
    pieces: list[str] = []
    level = cut = kept = 0
    for token in _BRACKET.finditer(text):
        mark = token[0]
        if mark in "[{":
            level += 1
            if level == keep + 1:
                cut = token.start()
        elif mark in "]}":
            if level == keep + 1:
                pieces += (text[kept:cut], "null")
                kept = token.end()
            level -= 1
    return "".join([*pieces, text[kept:]])


def entries(text: str) -> dict[str, str]:
    """Key -> the text of its value, exactly as it was sent; of a key named twice, the last.

    `text` is an object whose upper levels are grammatical (see `shallow`)."""
    found: dict[str, str] = {}
    key: str | None = None
    level = start = 0
    for token in _MARK.finditer(text):
        mark = token[0]
        if mark in "[{":
            level += 1
        elif mark in "]}":
            if level == 1 and key is not None:
                found[key] = text[start : token.start()].strip(_BLANK)
            level -= 1
        elif level == 1:
            if mark == ":":
                start = token.end()
            elif mark == ",":
                if key is not None:
                    found[key] = text[start : token.start()].strip(_BLANK)
                key = None
            elif key is None:
                key = json.loads(mark)
    return found
