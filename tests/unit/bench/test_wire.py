"""What the load generator writes is the protocol, and what it cuts out of the server's frames is what they say."""

from __future__ import annotations

import json

import msgspec
import pytest

from hongyan.bench import wire
from hongyan.protocol.codec import JSON
from hongyan.protocol.requests import Ack, SendMessage
from hongyan.protocol.state import Message


def payload(frame: bytes) -> bytes:
    """Of one masked text frame (RFC 6455 section 5.2)."""
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    size, at = frame[1] & 0x7F, 2
    if size == 126:
        size, at = int.from_bytes(frame[2:4], "big"), 4
    elif size == 127:
        size, at = int.from_bytes(frame[2:10], "big"), 10
    key, body = frame[at : at + 4], frame[at + 4 :]
    assert len(body) == size
    return bytes(byte ^ key[n % 4] for n, byte in enumerate(body))


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frames_of_every_length(size: int) -> None:
    assert payload(wire.frame(b"x" * size)) == b"x" * size


def test_a_send_is_one_and_its_stamp_comes_back() -> None:
    request = JSON.decode(payload(wire.send(b"@bob", 123456789, b"hello", 7)))
    assert isinstance(request, SendMessage)
    assert (request.message_id, request.data.to, request.data.retry) == ("7", "@bob", False)
    assert wire.stamp(msgspec.json.decode(request.data.content).encode()) == 123456789
    again = JSON.decode(payload(wire.send(b"#team", 1, b"hello", 7, retry=True)))
    assert isinstance(again, SendMessage)
    assert again.data.retry


def test_acknowledgements_of_one_and_of_many() -> None:
    one = JSON.decode(payload(wire.acks({b"@bob": 3})))
    many = JSON.decode(payload(wire.acks({b"@bob": 3, b"#team": 4})))
    assert isinstance(one, Ack)
    assert isinstance(many, Ack)
    assert (one.data.conversation, one.data.seq) == ("@bob", 3)
    assert many.data.acks == {"@bob": 3, "#team": 4}


def test_other_requests_are_envelopes() -> None:
    assert json.loads(payload(wire.request("heartbeat", {}, "q1"))) == {
        "type": "heartbeat",
        "data": {},
        "message_id": "q1",
    }


@pytest.mark.parametrize("seq", [1, 42, 2**53])
def test_the_servers_frames_are_cut_where_they_should(seq: int) -> None:
    pieces = wire.cut(JSON.ack("7", "@bob", seq, False, 1, 2))
    assert (pieces[wire.KIND], pieces[wire.REF], pieces[wire.ACKED]) == (b"ack", b"7", b"@bob")
    assert wire.seq(pieces) == seq
    sent = Message("alice|bob", seq, 9, 1, "alice", "k", "text", b'"TS:55 said \\"hi\\""')
    pieces = wire.cut(JSON.message("@alice", sent, False))
    assert (pieces[wire.KIND], pieces[wire.CONVERSATION]) == (b"message", b"@alice")
    assert wire.seq(pieces) == seq
    assert wire.stamp(pieces[wire.CONTENT]) == 55
    assert wire.stamp(b"hello") == 0
