from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hongyan.gateway import frames
from hongyan.gateway.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Assembler,
    Violation,
    decode_close,
    encode,
    encode_close,
)


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x82\x00"),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (65535, b"\x82\x7e\xff\xff"),
        (65536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_headers_use_the_shortest_length(size, header):
    frame = encode(BINARY, b"x" * size)
    assert frame[: len(header)] == header
    assert len(frame) == len(header) + size
    assert frames.messages(True, [b"x" * size]) == frame


@pytest.mark.parametrize(("binary", "opcode"), [(False, TEXT), (True, BINARY)])
def test_messages_are_framed_one_after_the_other(binary, opcode):
    payloads = [b"x" * size for size in (3, 0, 125, 126, 1023, 1024, 1025, 70_000)]
    assert frames.messages(binary, payloads[:2]) == bytes((0x80 | opcode, 3)) + b"xxx" + bytes(
        (0x80 | opcode, 0)
    )
    assert frames.messages(binary, payloads) == b"".join(encode(opcode, each) for each in payloads)
    assert frames.messages(binary, []) == b""


@given(st.text(), st.data())
def test_text_cut_anywhere_comes_back_whole(text, data):
    payload = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    assembler = Assembler(10_000)
    for number, part in enumerate(parts):
        opcode = CONTINUATION if number else TEXT
        whole = assembler.feed(opcode, number == len(parts) - 1, False, part)
        assert assembler.feed(PING, True, False, b"between") == (PING, b"between")
    assert whole == (TEXT, payload)
    assert not assembler.open


def violation(*sequence, limit=10):
    assembler = Assembler(limit)
    with pytest.raises(Violation) as caught:
        for opcode, fin, reserved, payload in sequence:
            assembler.feed(opcode, fin, reserved, payload)
    return caught.value.code


@pytest.mark.parametrize(
    ("code", "sequence"),
    [
        (1002, [(TEXT, True, True, b"")]),
        (1002, [(PING, True, True, b"")]),
        (1002, [(0x3, True, False, b"")]),
        (1002, [(0xB, True, False, b"")]),
        (1002, [(PING, False, False, b"")]),
        (1002, [(PONG, True, False, b"x" * 126)]),
        (1002, [(CONTINUATION, True, False, b"")]),
        (1002, [(TEXT, False, False, b""), (TEXT, True, False, b"")]),
        (
            1002,
            [(TEXT, False, False, b""), (CONTINUATION, True, False, b""), (CONTINUATION, True, False, b"")],
        ),
        (1007, [(TEXT, True, False, b"\xff")]),
        (1007, [(TEXT, False, False, b"\xff")]),
        (1007, [(TEXT, False, False, "é".encode()[:1]), (CONTINUATION, True, False, b"")]),
        (1007, [(TEXT, True, False, b"\xed\xa0\x80")]),
        (1009, [(BINARY, True, False, b"x" * 11)]),
        (1009, [(BINARY, False, False, b"x" * 6), (CONTINUATION, False, False, b"x" * 5)]),
    ],
)
def test_violations_close_as_the_rfc_says(code, sequence):
    assert violation(*sequence) == code


def test_bad_utf8_is_found_before_the_message_ends():
    assembler = Assembler(100)
    assert assembler.feed(TEXT, False, False, "é".encode()[:1]) is None
    with pytest.raises(Violation):
        assembler.feed(CONTINUATION, False, False, b"a")


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4401, 4999])
def test_valid_close_codes(code):
    assert decode_close(code.to_bytes(2, "big") + b"why") == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_invalid_close_codes(code):
    with pytest.raises(Violation) as caught:
        decode_close(code.to_bytes(2, "big"))
    assert caught.value.code == 1002


def test_close_bodies():
    assert decode_close(b"") is None
    with pytest.raises(Violation) as half:
        decode_close(b"\x03")
    assert half.value.code == 1002
    with pytest.raises(Violation) as text:
        decode_close(b"\x03\xe8\xff")
    assert text.value.code == 1007
    assert encode_close(None) == bytes((0x80 | CLOSE, 0))


def test_a_long_reason_is_cut_between_characters():
    frame = encode_close(frames.POLICY, "鸿" * 60)
    assert len(frame) <= 2 + 125
    assert frame[4:].decode() == "鸿" * 41
