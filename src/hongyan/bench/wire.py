"""A client's frames and the server's, with as little work as can be: sends are patched, answers are cut, not parsed."""

from __future__ import annotations

from typing import Any

import msgspec

# RFC 6455 section 5.3 has clients mask, against proxies that mistake payloads for HTTP. A key of zeros masks
# nothing: the server unmasks all the same, the load generator need not, and there is no proxy to protect.
_ZERO_KEY = b"\0\0\0\0"
_MASKED = 0x80
_FIN_TEXT = 0x81

_SEND = b'{"type":"send_message","data":{"to":"%b","content_type":"text","content":"TS:%d %b"%b},"message_id":"%d"}'
_ACK = b'{"type":"ack","data":{"conversation":"%b","seq":%d}}'
_STAMP = b"TS:"

# Where the pieces are that `"` cuts a frame into. An acknowledgement and a message begin alike:
# {"type":"ack","data":{"ref":"7","conversation":"@bob","seq":1,…
# {"type":"message","data":{"conversation":"@bob","from":"bob","seq":1,"content_type":"text","content":"TS:…
KIND, REF, ACKED, CONVERSATION, SEQ, CONTENT = 3, 9, 13, 9, 16, 23
CUTS = 24


def frame(payload: bytes) -> bytes:
    """One text frame of a client."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN_TEXT, _MASKED | size)) + _ZERO_KEY + payload
    if size < 65536:
        return b"\x81\xfe" + size.to_bytes(2, "big") + _ZERO_KEY + payload
    return b"\x81\xff" + size.to_bytes(8, "big") + _ZERO_KEY + payload


def request(kind: str, data: dict[str, Any], ref: str | None = None) -> bytes:
    """Any request that is not on the hot path."""
    envelope: dict[str, Any] = {"type": kind, "data": data}
    if ref is not None:
        envelope["message_id"] = ref
    return frame(msgspec.json.encode(envelope))


def send(to: bytes, stamp_ns: int, filler: bytes, ref: int, retry: bool = False) -> bytes:
    """A text message; `stamp_ns` (when it was to be sent) travels in it."""
    return frame(_SEND % (to, stamp_ns, filler, b',"retry":true' if retry else b"", ref))


def acks(seqs: dict[bytes, int]) -> bytes:
    """One acknowledgement of what came in one go, by conversation."""
    if len(seqs) == 1:
        ((conversation, seq),) = seqs.items()
        return frame(_ACK % (conversation, seq))
    return request("ack", {"acks": {conversation.decode(): seq for conversation, seq in seqs.items()}})


def cut(payload: bytes) -> list[bytes]:
    """The pieces of a frame; see the constants above."""
    return payload.split(b'"', CUTS)


def seq(pieces: list[bytes]) -> int:
    """Raises ValueError, IndexError where it is no acknowledgement and no message."""
    return int(pieces[SEQ][1:-1])


def stamp(content: bytes) -> int:
    """When the message was to be sent; 0: not one of ours."""
    return int(content[3 : content.index(b" ", 3)]) if content.startswith(_STAMP) else 0
