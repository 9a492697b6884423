"""What a message's `content` may be, and how it crosses between the two codecs (protocol.md, "Envelope").

Content is kept as JSON, exactly the bytes a JSON client sent. Pure.
"""

from __future__ import annotations

import math
import re
from itertools import accumulate, chain, compress, repeat
from operator import is_
from typing import Any

import msgspec

from hongyan.errors import Refused, WireError

MAX_DEPTH = 64
MAX_DIGITS = 100
FIELD = "data.content"

# Where none of these occurs there is no surrogate, no exponent and no long number to look at.
_SUSPICIOUS = re.compile(rb"\\u[dD][89a-fA-F]|[0-9][eE]|[0-9.]{%d}" % (MAX_DIGITS + 1))
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_LONG_NUMBER = re.compile(rb"[0-9.eE+\-]{%d,}" % (MAX_DIGITS + 1))
_DIGITS = tuple(b"%d" % digit for digit in range(10))
_PEELED = 4
_STEP = {ord("("): 1, ord(")"): -1}
_ROUND = bytes.maketrans(b"[{]}", b"(())")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


def _invalid(text: str) -> Refused:
    return Refused(WireError("invalid_field", text, FIELD))


def check_json(raw: bytes) -> None:
    """Raise Refused `invalid_field` unless `raw`, grammatical JSON in valid UTF-8, is within the limits.

    Every step is one call into C for the whole text: 64 KiB of the worst content costs some milliseconds,
    where a loop over its parts cost thirty.
    """
    first = raw[:1]
    if first == b'"':
        if b"\\" in raw:
            _check_values(raw)
        return
    if first in b"[{" and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and too_deep(raw):
        raise _invalid(f"content is nested deeper than {MAX_DEPTH}")
    if _SUSPICIOUS.search(raw) is not None:
        _check_values(raw)


def _check_values(raw: bytes) -> None:
    for number in _LONG_NUMBER.findall(_STRING.sub(b'""', raw)):
        mantissa, _, exponent = number.lower().partition(b"e")
        if sum(map((mantissa + exponent).count, _DIGITS)) > MAX_DIGITS:
            raise _invalid(f"a number in content has more than {MAX_DIGITS} digits")
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError) as error:
        if "out of range" in str(error):
            raise _invalid("a number in content is not finite as a double") from None
        raise _invalid("content holds a lone surrogate or a bad escape") from None


def too_deep(raw: bytes) -> bool:
    """Whether the arrays and objects of JSON text nest deeper than MAX_DEPTH; a scalar is 0.

    Takes the innermost pairs away, level by level, while that pays; what is left is summed up. Iterative,
    for any input.
    """
    brackets = _STRING.sub(b"", raw).translate(None, _NO_BRACKET).translate(_ROUND)
    for _ in range(_PEELED):
        brackets = brackets.replace(b"()", b"")
        if not brackets:
            return False
    return max(accumulate(map(_STEP.__getitem__, brackets))) > MAX_DEPTH - _PEELED


_JSON_KINDS = {str, int, float, bool, type(None), list, dict}


def from_msgpack(raw: bytes) -> bytes:
    """MessagePack content as JSON. Raises Refused `invalid_field`; UnicodeDecodeError for strings that
    are not UTF-8 and msgspec.DecodeError for what is not MessagePack (both `malformed`)."""
    try:
        value = msgspec.msgpack.decode(raw, ext_hook=_refuse_ext)
    except RecursionError:
        raise _invalid(f"content is nested deeper than {MAX_DEPTH}") from None
    except msgspec.ValidationError:
        raise _invalid("content holds what JSON has not") from None
    _check_value(value)
    return msgspec.json.encode(value)


def _refuse_ext(code: int, data: memoryview) -> Any:
    raise _invalid("content holds a MessagePack extension type")


def _check_value(value: Any) -> None:
    """Level by level, each in a few C calls: 64 KiB hold 65,000 values."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        kinds = set(map(type, level))
        if not kinds <= _JSON_KINDS:
            raise _invalid("content holds what JSON has not (binary, timestamp or extension)")
        if float in kinds and not all(map(math.isfinite, _of(float, level))):
            raise _invalid("a number in content is not finite")
        lists = _of(list, level) if list in kinds else []
        maps = _of(dict, level) if dict in kinds else []
        if not lists and not maps:
            return
        if not set(map(type, chain.from_iterable(maps))) <= {str}:
            raise _invalid("a map in content has a key that is no string")
        level = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, maps))]
    raise _invalid(f"content is nested deeper than {MAX_DEPTH}")


def _of(kind: type, values: list[Any]) -> list[Any]:
    return list(compress(values, map(is_, map(type, values), repeat(kind))))


def to_msgpack(content: bytes) -> bytes:
    """Checked JSON content as MessagePack; an integer beyond 64 bits becomes the nearest float."""
    value = msgspec.json.decode(content)
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return msgspec.msgpack.encode(_narrow(value))


def _narrow(value: Any) -> Any:
    kind = type(value)
    if kind is int and not -(2**63) <= value < 2**64:
        return float(value)
    if kind is list:
        return [_narrow(each) for each in value]
    if kind is dict:
        return {key: _narrow(each) for key, each in value.items()}
    return value
