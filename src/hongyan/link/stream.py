"""Batches of messages over a Unix socket: what one turn of the loop produces goes out in one write.

A frame is a length (4 bytes, big-endian) and a MessagePack array of that many bytes. Its head is always of array 32,
so that messages that were encoded once can be put into the frames of several links.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec
import structlog

_HEAD = struct.Struct(">IBI")  # length of what follows it, array 32, messages
_ARRAY_32 = 0xDD
_LENGTH = 4
MAX_FRAME_BYTES = 64 * 1024 * 1024
EARLY_BYTES = 256 * 1024  # a frame of that size does not wait for the turn's end
PAUSE_BYTES = 8 * 1024 * 1024  # waiting for the peer: past it a link is behind

_encoder = msgspec.msgpack.Encoder()
_encode_into = _encoder.encode_into
encode = _encoder.encode

log = structlog.get_logger("hongyan.link")


class Stream(asyncio.Protocol):
    """One end of a link. `take` gets the messages of each frame, `lost` is called once, at the end.

    `behind`: the peer takes what is written more slowly than it comes. Writing never waits; after the end it does
    nothing.
    """

    def __init__(
        self, decode: Callable[[memoryview], list[Any]], take: Callable[[list[Any]], None],
        lost: Callable[[], None], drained: Callable[[], None] = lambda: None, pause_bytes: int = PAUSE_BYTES,
    ) -> None:  # fmt: skip
        """`drained`: it is no longer behind; it is past `pause_bytes`."""
        self.behind = False
        self.closed = False
        self._decode = decode
        self._take = take
        self._lost = lost
        self._drained = drained
        self._pause_bytes = pause_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()  # the beginning of a frame
        self._frame = bytearray(_HEAD.size)
        self._count = 0
        self.ended: asyncio.Future[None] = self._loop.create_future()

    # writing

    def put(self, message: msgspec.Struct) -> None:
        """Send `message` with this turn's frame. What cannot be encoded raises, and leaves the frame as it was."""
        frame = self._frame
        size = len(frame)
        try:
            _encode_into(message, frame, -1)
        except Exception:
            del frame[size:]
            raise
        if not self._count:
            self._loop.call_soon(self.flush)
        self._count += 1
        if len(frame) > EARLY_BYTES:
            self.flush()

    def put_encoded(self, message: bytes) -> None:
        """The same for one that was encoded with `encode`; the caller flushes."""
        self._count += 1
        self._frame += message
        if len(self._frame) > EARLY_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        count = self._count
        if not count:
            return
        frame, self._frame, self._count = self._frame, bytearray(_HEAD.size), 0
        if self._transport is not None and not self.closed:
            _HEAD.pack_into(frame, 0, len(frame) - _LENGTH, _ARRAY_32, count)
            self._transport.write(frame)

    @property
    def backlog(self) -> int:
        """Bytes that the peer has not taken."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return waiting + len(self._frame)

    # the end

    def close(self) -> None:
        """End once everything has been written. Idempotent."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self, why: str = "") -> None:
        """End now. Idempotent."""
        if why and not self.closed:
            log.error("cut a link", why=why)
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # (uvloop's is none by inheritance)
        self._transport = transport
        transport.set_write_buffer_limits(high=self._pause_bytes, low=self._pause_bytes // 2)
        self.flush()

    def pause_writing(self) -> None:
        self.behind = True

    def resume_writing(self) -> None:
        self.behind = False
        self._drained()

    def data_received(self, data: bytes | bytearray) -> None:
        unread = self._unread
        if unread:
            unread += data
            data = unread
        at, size = 0, len(data)
        with memoryview(data) as view:
            while size - at > _LENGTH and not self.closed:
                end = at + _LENGTH + int.from_bytes(view[at : at + _LENGTH], "big")
                if end - at > MAX_FRAME_BYTES:
                    self.abort("a frame above the limit")
                elif end > size:
                    break
                else:
                    self._frame_received(view[at + _LENGTH : end])
                    at = end
            left = view[at:].tobytes() if not unread and not self.closed else b""
        if unread:
            del unread[:at]
        else:
            unread += left

    def _frame_received(self, frame: memoryview) -> None:
        try:
            messages = self._decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.abort(f"a frame that cannot be read: {error}")
            return
        finally:
            frame.release()
        self._take(messages)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._transport = None
        self._unread.clear()
        if not self.ended.done():
            self.ended.set_result(None)
            self._lost()
