"""What the server sends, in both codecs."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hongyan.errors import RETRY, Retry, WireError
from hongyan.protocol.codec import JSON, MSGPACK, SUBPROTOCOLS, Codec
from hongyan.protocol.state import Message

CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
ID, AT = 223456789012345678, 1_700_000_000_000
_refs = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)


def read(codec: Codec, payload: bytes) -> Any:
    return msgspec.msgpack.decode(payload) if codec.binary else json.loads(payload)


def message(content: bytes = b'{"a": [1.0, null]}', key: str = "k") -> Message:
    return Message("alice|bob", 42, ID, AT, "alice", key, "text/x+y", content)


def test_subprotocols() -> None:
    assert SUBPROTOCOLS == {"hongyan.v1.json": JSON, "hongyan.v1.msgpack": MSGPACK}
    assert (JSON.binary, MSGPACK.binary) == (False, True)


@CODECS
@given(_refs, st.booleans())
def test_an_ack(codec: Codec, ref: str, duplicate: bool) -> None:
    data = {"ref": ref, "conversation": "@bob", "seq": 7, "duplicate": duplicate}
    envelope = {"type": "ack", "data": data, "timestamp": AT, "message_id": str(ID)}
    assert read(codec, codec.ack(ref, "@bob", 7, duplicate, AT, ID)) == envelope


@CODECS
@pytest.mark.parametrize("own", [False, True])
@given(_refs)
def test_a_message_and_its_item(codec: Codec, own: bool, key: str) -> None:
    said = message(key=key)
    fields = {
        "conversation": "@alice", "from": "alice", "seq": 42, "content_type": "text/x+y", "content": {"a": [1.0, None]},
    } | ({"key": key} if own else {})  # fmt: skip
    time_and_id = {"timestamp": AT, "message_id": str(ID)}
    assert read(codec, codec.message("@alice", said, own)) == {
        "type": "message",
        "data": fields,
        **time_and_id,
    }
    reply = codec.envelope("history", {"messages": [codec.item("@alice", said, own)]}, 1, 2)
    assert read(codec, reply) == {
        "type": "history", "data": {"messages": [fields | time_and_id]}, "timestamp": 1, "message_id": "2",
    }  # fmt: skip


def test_json_content_goes_out_byte_for_byte() -> None:
    content = b'{ "b":1.50,"b":"\\u00e9" , "n":123456789012345678901234567890}'
    assert content in JSON.message("@alice", message(content), False)
    assert content in bytes(JSON.item("@alice", message(content), True))


def test_messagepack_gets_an_integer_beyond_64_bits_as_the_nearest_float() -> None:
    content = f"[{2**64 - 1},{2**64},{-(2**63)},{-(2**63) - 1}]".encode()
    sent = read(MSGPACK, MSGPACK.message("@alice", message(content), False))["data"]["content"]
    assert sent == [2**64 - 1, 2.0**64, -(2**63), -(2.0**63)]
    assert [type(each) for each in sent] == [int, float, int, float]


@CODECS
@pytest.mark.parametrize("code", RETRY)
def test_an_error_has_only_the_fields_that_apply(codec: Codec, code: str) -> None:
    bare = read(codec, codec.error(WireError(code, "text"), None, AT, ID))
    assert bare == {
        "type": "error", "data": {"code": code, "text": "text", "retry": RETRY[code].value},
        "timestamp": AT, "message_id": str(ID),
    }  # fmt: skip
    full = WireError(code, "text", "data.to", 250, Retry.AFTER_SYNC)
    assert read(codec, codec.error(full, "r", AT, ID))["data"] == {
        "ref": "r", "code": code, "text": "text", "retry": "after_sync", "field": "data.to", "retry_after_ms": 250,
    }  # fmt: skip
