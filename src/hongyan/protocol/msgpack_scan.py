"""Find the entries of a MessagePack map without decoding what they hold, however deep it nests.

Lengths and types are from the MessagePack specification (msgpack/msgpack, spec.md, "Formats").
"""

from __future__ import annotations

import msgspec

# lead byte -> (bytes of the length field, bytes beside the counted ones, items per counted unit)
_SIZED = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
}  # fmt: skip
_FIXED = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2,
    0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
_NESTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def _step(raw: bytes, at: int) -> tuple[int, int]:
    """(offset after this value's own bytes, values nested in it)."""
    lead = raw[at]
    if lead < 0x80 or lead >= 0xE0:
        return at + 1, 0
    if lead < 0x90:
        return at + 1, 2 * (lead & 15)
    if lead < 0xA0:
        return at + 1, lead & 15
    if lead < 0xC0:
        return at + 1 + (lead & 31), 0
    if lead in _FIXED:
        return at + 1 + _FIXED[lead], 0
    if lead in _SIZED:
        width, beside = _SIZED[lead]
        return at + 1 + width + beside + int.from_bytes(raw[at + 1 : at + 1 + width]), 0
    width, each = _NESTED[lead]
    return at + 1 + width, each * int.from_bytes(raw[at + 1 : at + 1 + width])


def _skip(raw: bytes, at: int) -> int:
    left = 1
    while left:
        at, nested = _step(raw, at)
        left += nested - 1
    return at


def is_valid(raw: bytes) -> bool:
    """True for exactly one MessagePack value, its strings UTF-8, however deep and whatever its keys are."""
    at, left = 0, 1
    try:
        while left:
            after, nested = _step(raw, at)
            if after > len(raw):
                return False
            lead = raw[at]
            if 0xA0 <= lead < 0xC0:
                raw[at + 1 : after].decode()
            elif 0xD9 <= lead <= 0xDB:
                raw[at + 1 + _SIZED[lead][0] : after].decode()
            at, left = after, left + nested - 1
    except (IndexError, KeyError, UnicodeDecodeError):
        return False
    return at == len(raw)


def entries(raw: bytes) -> dict[str, bytes] | None:
    """Key -> the bytes of its value, of the entries with string keys; None for what is no map.

    `raw` is valid (`is_valid`)."""
    if not (0x80 <= raw[0] < 0x90 or raw[0] in (0xDE, 0xDF)):
        return None
    found: dict[str, bytes] = {}
    at, count = _step(raw, 0)
    for _ in range(count // 2):
        value = _skip(raw, at)
        end = _skip(raw, value)
        if 0xA0 <= raw[at] < 0xC0 or 0xD9 <= raw[at] <= 0xDB:
            found[msgspec.msgpack.decode(raw[at:value])] = raw[value:end]
        at = end
    return found
