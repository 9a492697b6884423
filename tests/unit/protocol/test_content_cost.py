"""The worst content of 64 KiB costs a bounded number of calls, not a loop over its parts."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import msgspec
import pytest

from hongyan.errors import Refused
from hongyan.protocol.content import MAX_DEPTH, check_json, from_msgpack

SIZE = 64 * 1024
EMPTY_LISTS = b"[" + b"[]," * (SIZE // 3) + b"[]]"
STACKS = (
    b"[" + b",".join([b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)] * (SIZE // (2 * MAX_DEPTH))) + b"]"
)
EXPONENTS = b"[" + b"1e1," * (SIZE // 4) + b"1]"
ESCAPES = b"[" + b'"\\ud83d\\ude00",' * (SIZE // 15) + b'"\\u0041"]'
TOO_DEEP = b"[" * (SIZE // 2) + b"]" * (SIZE // 2)


def calls_of(content: bytes, check: Callable[[bytes], object] = check_json) -> int:
    """Calls, of Python and of C, that the check makes."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # its callbacks are calls too
    sys.setprofile(counted)
    try:
        check(content)
    except Refused:
        pass
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize(
    "content", [EMPTY_LISTS, STACKS, EXPONENTS, ESCAPES, TOO_DEEP], ids=lambda c: str(c[:12])
)
def test_the_check_makes_few_calls_however_many_parts_there_are(content: bytes) -> None:
    assert calls_of(content) < 100 + 2 * MAX_DEPTH


@pytest.mark.parametrize("parts", [[None], [[]], [{}], [1.5], [{"a": [1]}]], ids=str)
def test_so_it_is_with_messagepack(parts: list[object]) -> None:
    content = msgspec.msgpack.encode(parts * (SIZE // len(msgspec.msgpack.encode(parts[0]))))
    assert calls_of(content, from_msgpack) < 100 + 2 * MAX_DEPTH


@pytest.mark.parametrize("content", [EMPTY_LISTS, STACKS, EXPONENTS, ESCAPES], ids=lambda c: str(c[:12]))
def test_content_within_the_limits_passes_however_many_parts_it_has(content: bytes) -> None:
    check_json(content)


def test_brackets_in_strings_do_not_nest() -> None:
    check_json(b"[" + b'"[[[[{{{\\"[[[",' * 1000 + b"1]")
    with pytest.raises(Refused, match="deeper"):
        check_json(b'["]",' * 65 + b"1" + b"]" * 65)
