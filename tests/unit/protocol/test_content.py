"""Content: what is let in, and that it means the same through both codecs."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hongyan.errors import Refused
from hongyan.protocol.content import check_json, from_msgpack, to_msgpack

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**99) + 1, 10**99)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
_keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=20,
)


def narrowed(value: Any) -> Any:
    """What MessagePack can hold: integers beyond 64 bits as the nearest float."""
    if type(value) is int and not -(2**63) <= value < 2**64:
        return float(value)
    if isinstance(value, list):
        return [narrowed(each) for each in value]
    if isinstance(value, dict):
        return {key: narrowed(each) for key, each in value.items()}
    return value


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same type all the way down (1, 1.0 and True are different content)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b) and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@given(values, st.booleans())
def test_json_content_means_the_same_in_messagepack(value: Any, ascii: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii).encode()
    check_json(raw)
    assert same(msgspec.msgpack.decode(to_msgpack(raw)), narrowed(value))


@given(values)
def test_messagepack_content_means_the_same_in_json(value: Any) -> None:
    raw = from_msgpack(msgspec.msgpack.encode(narrowed(value)))
    check_json(raw)
    assert same(json.loads(raw), narrowed(value))


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_messagepack_is_content_or_refused(raw: bytes) -> None:
    try:
        content = from_msgpack(raw)
    except (Refused, msgspec.DecodeError, UnicodeDecodeError, TypeError):
        return
    check_json(content)
    assert same(json.loads(content), msgspec.msgpack.decode(raw))


def refusal(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        check_json(raw)
    assert (caught.value.error.code, caught.value.error.field) == ("invalid_field", "data.content")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("deep", [64, 65, 500, 20_000])
def test_json_nests_at_most_64_deep(opening: bytes, deep: int) -> None:
    raw = opening * deep + b"1" + (b"]" if opening == b"[" else b"}") * deep
    if deep <= 64:
        check_json(raw)
    else:
        refusal(raw)


def test_brackets_in_strings_do_not_nest() -> None:
    check_json(b'["' + b"[" * 500 + b'\\"' + b"{" * 500 + b'"]')


@pytest.mark.parametrize("wrap", ["%s", "[%s]", '{"a":[1,%s]}'])
@pytest.mark.parametrize(
    ("number", "fine"),
    [
        ("1e308", True), ("-1.7976931348623157e308", True), ("1e-9999", True), ("1E+5", True),
        ("9" * 100, True), ("0." + "1" * 99, True), ("-" + "9" * 100, True),
        ("1e309", False), ("-1E309", False), ("9" * 101, False), ("9" * 5000, False),
        ("0." + "1" * 100, False), ("1." + "1" * 98 + "e10", False), ("1e" + "0" * 100 + "1", False),
    ],
)  # fmt: skip
def test_numbers_are_finite_and_at_most_100_digits(wrap: str, number: str, fine: bool) -> None:
    raw = (wrap % number).encode()
    if fine:
        check_json(raw)
    else:
        refusal(raw)


def test_what_looks_like_a_number_in_a_string_is_text() -> None:
    check_json(b'{"1e999":"' + b"9" * 5000 + b' 1e999"}')


@pytest.mark.parametrize("wrap", ["%s", "[1,%s]", '{"a":%s}', "{%s:1}"])
@pytest.mark.parametrize(
    ("text", "fine"),
    [
        (r'"\ud83d\ude00"', True), (r'"\\ud800"', True), (r'"\uD83D\uDE00x"', True),
        (r'"\ud800"', False), (r'"\udc00"', False), (r'"\uDC00\uD800"', False), (r'"\ud800\u0041"', False),
        (r'"\\\ud800"', False), (r'"\ud800\ud83d\ude00"', False),
    ],
)  # fmt: skip
def test_no_lone_surrogates(wrap: str, text: str, fine: bool) -> None:
    raw = (wrap % text).encode()
    if fine:
        check_json(raw)
    else:
        refusal(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc4\x01a", b"\xd4\x05a", b"\xc7\x00\x05", msgspec.msgpack.encode(datetime.datetime.now(datetime.UTC)),
        msgspec.msgpack.encode(math.nan), msgspec.msgpack.encode(math.inf), b"\xca\xff\x80\0\0",
        b"\x81\x01\x02", b"\x81\xc4\x01a\x02", b"\x81\xc0\x02", b"\x81\x91\x01\x02",
        b"\x91" * 65 + b"\xc0", b"\x81\xa1a" * 65 + b"\xc0", b"\x91" * 20_000 + b"\xc0",
    ],
    ids=lambda raw: raw[:6].hex(),
)  # fmt: skip
def test_messagepack_beyond_json_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        from_msgpack(raw)
    assert (caught.value.error.code, caught.value.error.field) == ("invalid_field", "data.content")


def test_messagepack_nests_at_most_64_deep() -> None:
    assert from_msgpack(b"\x91" * 64 + b"\xc0") == b"[" * 64 + b"null" + b"]" * 64
