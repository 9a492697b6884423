"""RFC 6455 where the parser leaves it to its listener: pure, bytes in, values out.

picows checks masks, lengths, reserved opcodes and the size of control frames. Here: reserved bits, the
order of fragments, UTF-8, the size of a message summed over its fragments, and close codes.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from struct import pack

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

PROTOCOL_ERROR = 1002
INVALID_TEXT = 1007
POLICY = 1008
TOO_BIG = 1009
INTERNAL = 1011
RESTART = 1012
BAD_LOGIN = 4401
SILENT = 4408
REPLACED = 4409
FLOODING = 4429
TOO_SLOW = 4430
OF_APPLICATIONS = 3000  # codes from here on are anybody's (section 7.4.2), and these of them are ours:
OURS = frozenset((BAD_LOGIN, SILENT, REPLACED, FLOODING, TOO_SLOW))

MAX_REASON_BYTES = 123  # section 5.5: 125 bytes with the code

_utf8 = codecs.getincrementaldecoder("utf-8")


class Violation(Exception):
    """The peer broke RFC 6455: close with `code` and `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def _head(opcode: int, size: int) -> bytes:
    if size < 126:
        return bytes((0x80 | opcode, size))
    if size < 65536:
        return pack("!BBH", 0x80 | opcode, 126, size)
    return pack("!BBQ", 0x80 | opcode, 127, size)


# By kind (`Codec.binary`) and size of the payload: made in advance, a third of the time.
_READY = 1024
_HEADS = tuple([_head(opcode, size) for size in range(_READY)] for opcode in (TEXT, BINARY))


def encode(opcode: int, payload: bytes) -> bytes:
    """One unfragmented, unmasked frame (section 5.2; a server never masks, section 5.1)."""
    return _head(opcode, len(payload)) + payload


def messages(binary: bool, payloads: Sequence[bytes]) -> bytes:
    """The frames of text or binary messages, one after the other. Each payload is copied once."""
    heads = _HEADS[binary]
    if len(payloads) == 1:
        (payload,) = payloads
        if len(payload) < _READY:
            return heads[len(payload)] + payload
    pieces: list[bytes] = []
    for payload in payloads:
        size = len(payload)
        pieces += (heads[size] if size < _READY else _head(BINARY if binary else TEXT, size), payload)
    return b"".join(pieces)


def encode_close(code: int | None, reason: str = "") -> bytes:
    """A close frame; `code` None has no body. A reason that is too long is cut between characters."""
    if code is None:
        return encode(CLOSE, b"")
    body = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return encode(CLOSE, pack("!H", code) + body)


def close_code(frame: bytes) -> int | None:
    """The code in a close frame of `encode_close`."""
    return int.from_bytes(frame[2:4], "big") if len(frame) >= 4 else None


def decode_close(payload: bytes) -> int | None:
    """The code of a peer's close frame, None where it gives none. Raises `Violation` (section 7.4)."""
    if not payload:
        return None
    if len(payload) == 1:
        raise Violation(PROTOCOL_ERROR, "close frame with half a code")
    code = int.from_bytes(payload[:2], "big")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise Violation(PROTOCOL_ERROR, "invalid close code")
    check_text(payload[2:])
    return code


def check_text(payload: bytes) -> None:
    """Raises `Violation` 1007 unless `payload` is UTF-8 (section 8.1)."""
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise Violation(INVALID_TEXT, "text that is not UTF-8") from None


class Assembler:
    """Puts fragments together (section 5.4). `open` while a message is unfinished."""

    __slots__ = ("_decoder", "_max_bytes", "_opcode", "_parts", "open")

    def __init__(self, max_bytes: int) -> None:
        self.open = False
        self._max_bytes = max_bytes
        self._opcode = 0
        self._parts: bytearray | None = None
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, opcode: int, fin: bool, reserved: bool, payload: bytes) -> tuple[int, bytes] | None:
        """Take one frame. Returns (opcode, payload) of a whole message or a control frame, None for a
        fragment that more will follow. Raises `Violation`; nothing may be fed after that."""
        if reserved:
            raise Violation(PROTOCOL_ERROR, "reserved bit set")
        if opcode >= 0x8:
            if opcode > PONG or not fin or len(payload) > 125:
                raise Violation(PROTOCOL_ERROR, "invalid control frame")
            return opcode, payload
        if opcode == CONTINUATION:
            if not self.open:
                raise Violation(PROTOCOL_ERROR, "continuation of nothing")
        elif opcode > BINARY:
            raise Violation(PROTOCOL_ERROR, "reserved opcode")
        elif self.open:
            raise Violation(PROTOCOL_ERROR, "new message inside a fragmented one")
        elif fin:
            if len(payload) > self._max_bytes:
                raise Violation(TOO_BIG, "message too big")
            if opcode == TEXT:
                check_text(payload)
            return opcode, payload
        else:
            self.open = True
            self._opcode = opcode
            self._parts = bytearray()
            self._decoder = _utf8() if opcode == TEXT else None
        return self._add(payload, fin)

    def _add(self, payload: bytes, fin: bool) -> tuple[int, bytes] | None:
        parts = self._parts
        assert parts is not None
        if len(parts) + len(payload) > self._max_bytes:
            raise Violation(TOO_BIG, "message too big")
        if self._decoder is not None:
            try:  # at each fragment: a bad byte is not waited out to the end of the message
                self._decoder.decode(payload, fin)
            except UnicodeDecodeError:
                raise Violation(INVALID_TEXT, "text that is not UTF-8") from None
        parts += payload
        if not fin:
            return None
        self.open = False
        self._parts = self._decoder = None
        return self._opcode, bytes(parts)
