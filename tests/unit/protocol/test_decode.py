"""Requests: what is accepted, and the exact error for everything else, in both codecs."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hongyan.protocol import json_scan, msgpack_scan
from hongyan.protocol.codec import JSON, MSGPACK, Codec
from hongyan.protocol.requests import TYPES, Ack, BadRequest, Heartbeat, Request, SendMessage

CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
SEND = {"to": "@bob", "content_type": "text", "content": "hi"}
LEFT_OUT = object()


def request(codec: Codec, type: Any, data: Any = LEFT_OUT, **more: Any) -> Request:
    envelope = {"type": type, **({} if data is LEFT_OUT else {"data": data}), **more}
    return codec.decode(msgspec.msgpack.encode(envelope) if codec.binary else json.dumps(envelope).encode())


def refused(codec: Codec, *arguments: Any, **more: Any) -> tuple[str, str | None, str | None]:
    """(code, field, ref) of the error."""
    with pytest.raises(BadRequest) as caught:
        request(codec, *arguments, **more)
    return caught.value.error.code, caught.value.error.field, caught.value.ref


@CODECS
def test_a_send(codec: Codec) -> None:
    sent = request(
        codec, "send_message", SEND | {"retry": True, "new": 1}, message_id="m", timestamp=5, new=[]
    )
    assert isinstance(sent, SendMessage)
    assert (sent.message_id, sent.data.to, sent.data.content_type) == ("m", "@bob", "text")
    assert sent.data.content == b'"hi"'
    assert sent.data.retry is True


def test_json_content_stays_as_it_was_written() -> None:
    payload = b'{"data":{"content": { "b":1.0 ,"a":"\\u0041" } ,"to":"#g","content_type":"x"},"type":"send_message","message_id":"m"}'
    sent = JSON.decode(payload)
    assert isinstance(sent, SendMessage)
    assert sent.data.content.strip() == b'{ "b":1.0 ,"a":"\\u0041" }'


@CODECS
@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"to": "bob"}, "invalid_field", "data.to"),
        ({"to": "@"}, "invalid_field", "data.to"),
        ({"to": "@a b"}, "invalid_field", "data.to"),
        ({"to": "@bob\n"}, "invalid_field", "data.to"),
        ({"to": "#" + "x" * 65}, "invalid_field", "data.to"),
        ({"to": 5}, "invalid_field", "data.to"),
        ({"content_type": ""}, "invalid_field", "data.content_type"),
        ({"content_type": "x" * 65}, "invalid_field", "data.content_type"),
        ({"content_type": "text\n"}, "invalid_field", "data.content_type"),
        ({"content_type": "é"}, "invalid_field", "data.content_type"),
        ({"content_type": "hongyan.edit"}, "invalid_field", "data.content_type"),
        ({"retry": 1}, "invalid_field", "data.retry"),
    ],
)
def test_a_send_with_a_wrong_field(codec: Codec, change: dict[str, Any], code: str, field: str) -> None:
    assert refused(codec, "send_message", SEND | change, message_id="m") == (code, field, "m")


@CODECS
@pytest.mark.parametrize("missing", ["to", "content_type", "content"])
def test_a_send_with_a_field_missing(codec: Codec, missing: str) -> None:
    data = {name: value for name, value in SEND.items() if name != missing}
    assert refused(codec, "send_message", data, message_id="m") == ("invalid_field", f"data.{missing}", "m")


@CODECS
def test_null_is_content(codec: Codec) -> None:
    sent = request(codec, "send_message", SEND | {"content": None}, message_id="m")
    assert isinstance(sent, SendMessage)
    assert sent.data.content == b"null"


@CODECS
@pytest.mark.parametrize("wrong", ["", "x" * 65, 7, None, True, ["m"]])
@pytest.mark.parametrize(("type", "data"), [("send_message", SEND), ("heartbeat", {}), ("sync_offline", {})])
def test_a_message_id_is_1_to_64_characters(codec: Codec, type: str, data: Any, wrong: Any) -> None:
    assert refused(codec, type, data, message_id=wrong) == ("invalid_field", "message_id", None)


@CODECS
def test_a_message_id_is_counted_in_code_points_and_optional_except_on_sends(codec: Codec) -> None:
    assert request(codec, "heartbeat", message_id="\U0001f600" * 64).message_id == "\U0001f600" * 64
    assert request(codec, "heartbeat").message_id is None
    assert refused(codec, "send_message", SEND) == ("invalid_field", "message_id", None)


@CODECS
@pytest.mark.parametrize("timestamp", [None, "x", -1, 1.5, 10**18, [], {}])
def test_a_timestamp_is_advisory(codec: Codec, timestamp: Any) -> None:
    assert isinstance(request(codec, "heartbeat", timestamp=timestamp), Heartbeat)


@CODECS
@pytest.mark.parametrize("type", [None, 5, ["heartbeat"], True])
def test_without_a_string_type_it_is_malformed(codec: Codec, type: Any) -> None:
    assert refused(codec, type, {}, message_id="m") == ("malformed", None, "m")


@CODECS
@pytest.mark.parametrize("type", [*TYPES, "nobody_knows"])
@pytest.mark.parametrize("data", [None, 5, "x", []])
def test_data_that_is_no_object_is_malformed(codec: Codec, type: str, data: Any) -> None:
    assert refused(codec, type, data, message_id="m") == ("malformed", None, "m")


@CODECS
@pytest.mark.parametrize("type", ["", "Heartbeat", "message", "__class__", "x" * 1000])
def test_an_unknown_type(codec: Codec, type: str) -> None:
    assert refused(codec, type, {}, message_id="m") == ("unknown_type", None, "m")


@pytest.mark.parametrize(
    "payload",
    [
        b"", b" ", b"x", b"{", b"[]", b"5", b'"x"', b"null", b"{}", b'{"type":"heartbeat"}x', b'{"type":"heartbeat",}',
        b'{"type":"heartbeat","x":NaN}', b'{"type":"heartbeat","x":-Infinity}', b'{"type":"heartbeat","x":01}',
        b'{"type":"heartbeat","x":"\x01"}', "\ufeff{}".encode(), b"[" * 60_000, b'{"a":' * 12_000,
    ],
    ids=lambda payload: payload[:40].decode(),
)  # fmt: skip
def test_malformed_json(payload: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        JSON.decode(payload)
    assert caught.value.error.code == "malformed"


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xc1", b"\x80", b"\x90", b"\x05", b"\xa1x", b"\x81", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff", msgspec.msgpack.encode({"type": "heartbeat"}) + b"\xc0",
        msgspec.msgpack.encode({"type": "heartbeat", "x": msgspec.Raw(b"\xa1\xff")}),
        msgspec.msgpack.encode({"type": "heartbeat", "x": msgspec.Raw(b"\xa3\xed\xa0\x80")}),
        msgspec.msgpack.encode({"type": "heartbeat", "x": msgspec.Raw(b"\x91" * 5000 + b"\xa1\xff")}),
        msgspec.msgpack.encode({"type": b"heartbeat"}), b"\x91" * 60_000, b"\x81\xa1a" * 20_000,
    ],
    ids=lambda payload: payload[:20].hex(),
)  # fmt: skip
def test_malformed_messagepack(payload: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        MSGPACK.decode(payload)
    assert caught.value.error.code == "malformed"


def send_json(content: str, more: str = "") -> bytes:
    data = f'"to":"@bob","content_type":"text","content":{content}'
    return f'{{"type":"send_message","message_id":"m","data":{{{data}{more}}}{more}}}'.encode()


def send_msgpack(content: bytes, more: bytes | None = None) -> bytes:
    extra = {} if more is None else {"x": msgspec.Raw(more)}
    data = SEND | {"content": msgspec.Raw(content)} | extra
    return msgspec.msgpack.encode({"type": "send_message", "message_id": "m", "data": data} | extra)


@pytest.mark.parametrize("deep", [65, 70, 71, 1_000, 20_000])
def test_content_nested_too_deeply_is_refused_with_its_ref(deep: int) -> None:
    for codec, payload in (
        (JSON, send_json("[" * deep + "]" * deep)),
        (JSON, send_json('{"a":' * deep + "1" + "}" * deep)),
        (MSGPACK, send_msgpack(b"\x91" * deep + b"\xc0")),
    ):
        with pytest.raises(BadRequest) as caught:
            codec.decode(payload)
        error = caught.value.error
        assert (error.code, error.field, caught.value.ref) == ("invalid_field", "data.content", "m")


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        (JSON, send_json("1", ',"x":' + "[" * 20_000 + "]" * 20_000)),
        (JSON, send_json("1", ',"x":' + '{"content":' * 100 + "1" + "}" * 100)),
        (JSON, send_json("1", r',"x":"\ud800"')),
        (JSON, send_json("1", ',"x":1e999')),
        (JSON, send_json("1", ',"x":' + "9" * 5000)),
        (JSON, send_json("1e999", ',"content":1')),
        (JSON, send_json('"\\ud800"', ',"content":1')),
        (JSON, send_json("1e999", ',"conten\\u0074":1')),
        (MSGPACK, send_msgpack(b"\x01", b"\x91" * 20_000 + b"\xc0")),
        (MSGPACK, send_msgpack(b"\x01", b"\xd7\xff" + b"\xff" * 8)),
        (MSGPACK, send_msgpack(b"\x01", b"\x81\x81\x01\x01\x01")),
        (MSGPACK, send_msgpack(b"\x01", b"\xc4\x01\xff")),
    ],
    ids=range(12),
)
def test_a_field_that_nobody_reads_spoils_nothing(codec: Codec, payload: bytes) -> None:
    sent = codec.decode(payload)
    assert isinstance(sent, SendMessage)
    assert (sent.message_id, sent.data.content) == ("m", b"1")


@pytest.mark.parametrize(
    "content", [b"\x81\x81\x01\x01\x01", b"\xd7\xff" + b"\xff" * 8, b"\x92\xc4\x01a\x01"]
)
def test_messagepack_content_that_python_cannot_hold_is_invalid_content(content: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        MSGPACK.decode(send_msgpack(content))
    error = caught.value.error
    assert (error.code, error.field, caught.value.ref) == ("invalid_field", "data.content", "m")


@pytest.mark.parametrize(
    ("type", "data", "field"),
    [
        ("create_group", {"name": "\ud800"}, "data.name"),
        ("login", {"token": "\udc00", "device_id": "d"}, "data.token"),
        ("sync_offline", {"page": "\ud800"}, "data.page"),
        ("conversations", {"page": "\ud800"}, "data.page"),
        ("send_message", SEND | {"to": "@\ud800"}, "data.to"),
    ],
)
def test_a_lone_surrogate_in_a_field_that_is_read(type: str, data: dict[str, Any], field: str) -> None:
    assert refused(JSON, type, data, message_id="m") == ("invalid_field", field, "m")
    assert refused(JSON, "heartbeat", {}, message_id="m\ud800") == ("invalid_field", "message_id", None)


def test_a_lone_surrogate_in_a_name_that_is_not_read() -> None:
    for type in ("heartbeat", "sync_offline"):
        request(JSON, type, {"\ud800": 1})
    assert refused(JSON, "history", {"\ud800": 1})[:2] == ("invalid_field", "data.conversation")


@CODECS
@pytest.mark.parametrize(
    ("data", "acks"),
    [
        ({"conversation": "@a", "seq": 4}, {"@a": 4}),
        ({"acks": {"@a": 4, "#g": 0}}, {"@a": 4, "#g": 0}),
        ({"acks": {}}, {}),
        # what is no address is no conversation of the user's either
        ({"acks": {"a": 4, "": 1, "@a b": 2, "#g": 7}}, {"#g": 7}),
        ({"conversation": "nobody", "seq": 4}, {"nobody": 4}),
        ({"acks": {"@a": 9}, "conversation": "@a", "seq": 4}, {"@a": 9}),
        ({"conversation": "@a", "seq": 2**63 - 1}, {"@a": 2**63 - 1}),
        ({"conversation": "@a", "seq": 2**64 - 1}, {"@a": 2**63 - 1}),
    ],
)
def test_acks(codec: Codec, data: dict[str, Any], acks: dict[str, int]) -> None:
    ack = request(codec, "ack", data)
    assert isinstance(ack, Ack)
    found = ack.data.acks
    assert (found if found is not None else {ack.data.conversation: ack.data.seq}) == acks


def test_an_integer_beyond_64_bits_is_still_one() -> None:
    ack = request(JSON, "ack", {"acks": {"@a": 10**30, "#g": 10**99}})
    assert isinstance(ack, Ack)
    assert ack.data.acks == {"@a": 2**63 - 1, "#g": 2**63 - 1}
    ack = request(JSON, "ack", {"conversation": "@a", "seq": 10**30})
    assert isinstance(ack, Ack)
    assert ack.data.seq == 2**63 - 1


@pytest.mark.parametrize("name", ["acks", "cursors"])
def test_what_is_accepted_can_be_passed_on(name: str) -> None:
    """To the engine's process, that is: what no MessagePack can hold would cut the link."""
    data = {name: {"\ud800": 1, "@a": 10**30}}
    accepted = request(JSON, "ack" if name == "acks" else "sync_offline", data)
    msgspec.msgpack.encode(accepted.data)  # type: ignore[attr-defined]


@CODECS
@pytest.mark.parametrize(
    ("type", "data", "code", "field"),
    [
        *[
            ("ack", {"conversation": "@a", "seq": seq}, "invalid_field", "data.seq")
            for seq in (-1, 1.0, True, "1")
        ],
        *[("ack", {"acks": {"@a": seq}}, "invalid_field", "data.acks") for seq in (-1, 1.0, True, "1", None)],
        ("ack", {"conversation": "@a"}, "invalid_field", "data.seq"),
        ("ack", {"seq": 1}, "invalid_field", "data.conversation"),
        ("ack", {"acks": {f"@u{n}": 1 for n in range(5001)}}, "too_large", "data.acks"),
        *[
            ("sync_offline", {"limit": n}, "invalid_field", "data.limit")
            for n in (0, 501, -1, 1.0, True, "5")
        ],
        ("sync_offline", {"cursors": {"@a": -1}}, "invalid_field", "data.cursors"),
        ("sync_offline", {"cursors": {f"@u{n}": 1 for n in range(5001)}}, "too_large", "data.cursors"),
        ("sync_offline", {"page": 5}, "invalid_field", "data.page"),
        *[("history", {"conversation": "@a", "limit": n}, "invalid_field", "data.limit") for n in (0, 501)],
        ("history", {"conversation": "a"}, "invalid_field", "data.conversation"),
        ("history", {"conversation": "@a", "before": -1}, "invalid_field", "data.before"),
        *[("conversations", {"limit": n}, "invalid_field", "data.limit") for n in (0, 501)],
        ("join_group", {}, "invalid_field", "data.group"),
        ("join_group", {"group": "@a"}, "invalid_field", "data.group"),
        ("leave_group", {"group": "g"}, "invalid_field", "data.group"),
        ("create_group", {"group": "g"}, "invalid_field", "data.group"),
        ("create_group", {"group": "#hongyan.x"}, "forbidden", "data.group"),
        ("create_group", {"name": "é" * 129}, "too_large", "data.name"),
        ("create_group", {"join": "closed"}, "invalid_field", "data.join"),
        ("invite", {"group": "#g", "users": ["bob"]}, "invalid_field", "data.users"),
        ("invite", {"group": "#g", "users": ["@bob"] * 101}, "too_large", "data.users"),
        ("presence", {"users": ["#g"]}, "invalid_field", "data.users"),
        ("presence", {"users": ["@bob"] * 101}, "too_large", "data.users"),
        ("presence", {"users": [], "subscribe": 1}, "invalid_field", "data.subscribe"),
        ("login", {"device_id": "d"}, "invalid_field", "data.token"),
        ("login", {"token": "t", "device_id": "d e"}, "invalid_field", "data.device_id"),
        ("login", {"token": "t", "device_id": "d", "platform": ""}, "invalid_field", "data.platform"),
    ],
)
def test_a_wrong_field_is_named(codec: Codec, type: str, data: dict[str, Any], code: str, field: str) -> None:
    assert refused(codec, type, data, message_id="m") == (code, field, "m")


@CODECS
def test_limits_themselves_are_allowed(codec: Codec) -> None:
    for type, data in (
        ("sync_offline", {"limit": 500, "cursors": {f"@u{n}": 1 for n in range(5000)}}),
        ("create_group", {"name": "\U0001f600" * 128, "group": "#" + "x" * 64}),
        ("invite", {"group": "#g", "users": ["@bob"] * 100}),
        ("history", {"conversation": "#g", "limit": 1, "before": 0, "after": 0}),
    ):
        assert isinstance(request(codec, type, data), TYPES[type])


_anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from(
    [
        "to",
        "content_type",
        "content",
        "retry",
        "conversation",
        "seq",
        "acks",
        "limit",
        "cursors",
        "page",
        "group",
        "name",
        "join",
        "users",
        "before",
        "after",
        "subscribe",
        "token",
        "device_id",
        "platform",
    ]
)
_addresses = st.sampled_from(["@a", "#g", "@", "x"])
_envelopes = st.fixed_dictionaries(
    {"type": st.sampled_from([*TYPES, "nope"]) | _anything},
    optional={
        "data": st.dictionaries(_names, _anything | _addresses, max_size=5) | _anything,
        "message_id": _anything,
    },
)


@given(_envelopes)
@settings(max_examples=400)
def test_both_codecs_give_the_same_verdict_and_raise_only_bad_request(envelope: dict[str, Any]) -> None:
    def verdict(codec: Codec, payload: bytes) -> Any:
        try:
            accepted = codec.decode(payload)
            msgspec.msgpack.encode(accepted.data)  # can be passed on
            return accepted
        except BadRequest as bad:
            return bad.error.code, bad.error.field, bad.ref

    packed, text = msgspec.msgpack.encode(envelope), msgspec.json.encode(envelope)
    binary, json_verdict = verdict(MSGPACK, packed), verdict(JSON, text)
    if isinstance(binary, SendMessage) and isinstance(json_verdict, SendMessage):
        assert json.loads(binary.data.content) == json.loads(json_verdict.data.content)
    elif b"null" not in text:  # JSON has no NaN: there it was a null
        assert binary == json_verdict


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: b"\x82\xa4type\xa9heartbeat" + tail))
@settings(max_examples=500)
def test_any_bytes_are_a_request_or_a_bad_request(payload: bytes) -> None:
    for codec in (JSON, MSGPACK):
        try:
            if not codec.binary:
                payload.decode()
        except UnicodeDecodeError:
            continue  # the gateway closes such a connection before decoding
        try:
            accepted = codec.decode(payload)
            assert isinstance(accepted, Request)
            msgspec.msgpack.encode(accepted.data)  # type: ignore[attr-defined]
        except BadRequest:
            pass


@given(st.text(st.sampled_from('{}[]":,\\u d8tcontype1e"send_message'), max_size=60))
@settings(max_examples=500)
def test_any_text_is_a_request_or_a_bad_request(text: str) -> None:
    for payload in (text.encode(), send_json(text), send_json("1", text)):
        try:
            accepted = JSON.decode(payload)
            assert isinstance(accepted, Request)
            msgspec.msgpack.encode(accepted.data)  # type: ignore[attr-defined]
        except BadRequest:
            pass


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _anything, max_size=5),
    st.integers(0, 4),
)
def test_scans_find_what_a_decoder_finds(value: dict[str, Any], indent: int) -> None:
    text = msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()
    assert {key: json.loads(each) for key, each in json_scan.entries(text).items()} == json.loads(text)
    packed = msgspec.msgpack.encode(value)
    found = msgpack_scan.entries(packed)
    assert found is not None
    assert {key: msgspec.msgpack.encode(each) for key, each in value.items()} == found
    assert msgpack_scan.is_valid(packed)
    assert not msgpack_scan.is_valid(packed + b"\xc0")


@given(st.binary(max_size=40))
@settings(max_examples=500)
def test_the_messagepack_scan_accepts_what_the_decoder_accepts(raw: bytes) -> None:
    try:
        msgspec.msgpack.decode(raw, ext_hook=lambda code, data: None)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
        return
    assert msgpack_scan.is_valid(raw)


@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        ("history", {"conversation": "@bob"}, "before"),
        ("history", {"conversation": "@bob"}, "limit"),
        ("sync_offline", {}, "page"),
        ("sync_offline", {}, "cursors"),
        ("create_group", {}, "group"),
        ("presence", {"users": []}, "subscribe"),
        ("ack", {"conversation": "@bob", "seq": 1}, "seq"),
        ("send_message", {"to": "@bob", "content_type": "text", "content": 1}, "retry"),
    ],
)
@pytest.mark.parametrize(
    "foreign",
    [
        msgspec.msgpack.Ext(1, b"a"),
        msgspec.msgpack.Ext(-1, bytes(4)),
        {(1,): 1},
        {1: 1},
        {"a": msgspec.msgpack.Ext(1, b"")},
    ],
    ids=["ext", "timestamp", "array as a key", "int as a key", "ext inside"],
)
def test_what_json_has_not_is_a_wrong_field_and_never_one_left_out(
    kind: str, data: dict[str, Any], field: str, foreign: Any
) -> None:
    code, at, ref = refused(MSGPACK, kind, data | {field: foreign}, message_id="m")
    assert (code, ref) == ("invalid_field", "m")
    assert at is not None and at.startswith(f"data.{field}")
    assert request(MSGPACK, kind, data | {"unknown": foreign}, message_id="m").message_id == "m"
