"""The two subprotocols: requests in, server envelopes out (payloads, not frames)."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from hongyan.errors import WireError
from hongyan.protocol.content import to_msgpack
from hongyan.protocol.decode import from_json, from_message_pack
from hongyan.protocol.requests import Request
from hongyan.protocol.state import Message


class Codec(Protocol):
    """`timestamp` in ms, `id` the envelope's Snowflake id. `own`: the viewer sent the message."""

    subprotocol: str
    binary: bool

    def decode(self, payload: bytes) -> Request:
        """Raises BadRequest and nothing else. JSON payloads have been checked to be UTF-8."""

    def envelope(self, type: str, data: dict[str, Any], timestamp: int, id: int) -> bytes: ...

    def ack(
        self, ref: str, conversation: str, seq: int, duplicate: bool, timestamp: int, id: int
    ) -> bytes: ...

    def message(self, address: str, message: Message, own: bool) -> bytes:
        """A `message` push."""

    def item(self, address: str, message: Message, own: bool) -> msgspec.Raw:
        """The message as an item of `sync_offline` and `history`."""

    def error(self, error: WireError, ref: str | None, timestamp: int, id: int) -> bytes: ...


def error_data(error: WireError, ref: str | None) -> dict[str, Any]:
    data: dict[str, Any] = {"code": error.code, "text": error.text, "retry": error.retry.value}
    if ref is not None:
        data = {"ref": ref, **data}
    if error.field is not None:
        data["field"] = error.field
    if error.retry_after_ms is not None:
        data["retry_after_ms"] = error.retry_after_ms
    return data


_quote = msgspec.json.encode

_ACK = (
    b'{"type":"ack","data":{"ref":%b,"conversation":"%b","seq":%d,"duplicate":%b},'
    b'"timestamp":%d,"message_id":"%d"}'
)
_FIELDS = b'"conversation":"%b","from":"%b","seq":%d,"content_type":"%b","content":%b%b'
_STAMP = b'"timestamp":%d,"message_id":"%d"}'
_PUSH = b'{"type":"message","data":{' + _FIELDS + b"}," + _STAMP
_ITEM = b"{" + _FIELDS + b"," + _STAMP


class _Json:
    """Hand-set text around escaped strings: content goes through untouched, and nothing is built only to
    be encoded."""

    subprotocol = "hongyan.v1.json"
    decode = staticmethod(from_json)

    def __init__(self) -> None:
        self.binary = False  # (of the instance: read with every frame, and a class's attribute takes longer)

    def envelope(self, type: str, data: dict[str, Any], timestamp: int, id: int) -> bytes:
        return msgspec.json.encode(
            {"type": type, "data": data, "timestamp": timestamp, "message_id": str(id)}
        )

    def ack(self, ref: str, conversation: str, seq: int, duplicate: bool, timestamp: int, id: int) -> bytes:
        return _ACK % (
            _quote(ref),
            conversation.encode(),
            seq,
            b"true" if duplicate else b"false",
            timestamp,
            id,
        )

    def message(self, address: str, message: Message, own: bool, template: bytes = _PUSH) -> bytes:
        key = b',"key":' + _quote(message.key) if own else b""
        return template % (
            address.encode(), message.sender.encode(), message.seq, message.content_type.encode(), message.content,
            key, message.at, message.id,
        )  # fmt: skip

    def item(self, address: str, message: Message, own: bool) -> msgspec.Raw:
        return msgspec.Raw(self.message(address, message, own, _ITEM))

    def error(self, error: WireError, ref: str | None, timestamp: int, id: int) -> bytes:
        return self.envelope("error", error_data(error, ref), timestamp, id)


class _MessagePack:
    subprotocol = "hongyan.v1.msgpack"
    decode = staticmethod(from_message_pack)

    def __init__(self) -> None:
        self.binary = True

    def envelope(self, type: str, data: dict[str, Any], timestamp: int, id: int) -> bytes:
        return msgspec.msgpack.encode(
            {"type": type, "data": data, "timestamp": timestamp, "message_id": str(id)}
        )

    def ack(self, ref: str, conversation: str, seq: int, duplicate: bool, timestamp: int, id: int) -> bytes:
        data = {"ref": ref, "conversation": conversation, "seq": seq, "duplicate": duplicate}
        return self.envelope("ack", data, timestamp, id)

    def message(self, address: str, message: Message, own: bool) -> bytes:
        return self.envelope("message", _fields(address, message, own), message.at, message.id)

    def item(self, address: str, message: Message, own: bool) -> msgspec.Raw:
        fields = _fields(address, message, own) | {"timestamp": message.at, "message_id": str(message.id)}
        return msgspec.Raw(msgspec.msgpack.encode(fields))

    def error(self, error: WireError, ref: str | None, timestamp: int, id: int) -> bytes:
        return self.envelope("error", error_data(error, ref), timestamp, id)


def _fields(address: str, message: Message, own: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "conversation": address, "from": message.sender, "seq": message.seq,
        "content_type": message.content_type, "content": msgspec.Raw(to_msgpack(message.content)),
    }  # fmt: skip
    if own:
        fields["key"] = message.key
    return fields


JSON: Codec = _Json()
MSGPACK: Codec = _MessagePack()
SUBPROTOCOLS: dict[str, Codec] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}
