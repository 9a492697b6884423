"""What a message's `content` may be, and how it crosses between the two codecs (protocol.md, "Envelope").

Content is kept as JSON, exactly the bytes a JSON client sent. Pure.
"""

from __future__ import annotations

import math
import re
from itertools import accumulate
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


def from_msgpack(raw: bytes) -> bytes:
    """MessagePack content as JSON. Raises Refused `invalid_field`; UnicodeDecodeError for strings that
    are not UTF-8 and msgspec.DecodeError for what is not MessagePack (both `malformed`)."""
    try:
        value = msgspec.msgpack.decode(raw, ext_hook=_refuse_ext)
    except RecursionError:
        raise _invalid(f"content is nested deeper than {MAX_DEPTH}") from None
    except msgspec.ValidationError:
        raise _invalid("content holds what JSON has not") from None
    _check_value(value, 0)
    return msgspec.json.encode(value)


def _refuse_ext(code: int, data: memoryview) -> Any:
    raise _invalid("content holds a MessagePack extension type")


def _check_value(value: Any, level: int) -> None:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return
    if kind is float:
        if not math.isfinite(value):
            raise _invalid("a number in content is not finite")
        return
    if kind is list:
        if level >= MAX_DEPTH:
            raise _invalid(f"content is nested deeper than {MAX_DEPTH}")
        for each in value:
            _check_value(each, level + 1)
    elif kind is dict:
        if level >= MAX_DEPTH:
            raise _invalid(f"content is nested deeper than {MAX_DEPTH}")
        for key, each in value.items():
            if type(key) is not str:
                raise _invalid("a map in content has a key that is no string")
            _check_value(each, level + 1)
    else:
        raise _invalid("content holds what JSON has not (binary, timestamp or extension)")


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
