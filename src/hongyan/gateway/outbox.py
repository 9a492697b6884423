"""What waits to be written to one connection, bounded in bytes; nothing here ever waits."""

from __future__ import annotations

import asyncio

from hongyan.gateway import frames

MAX_FRAME_BYTES = 512 * 1024  # no frame of the server is larger (protocol.md, "Transport")
_HEAD_BYTES = 10  # at most


class Outbox:
    """Payloads of messages are gathered in `payloads` and written as frames, joined, once a batch (`flush`).

    `binary`: of which kind they are. `limit` bounds what the peer has not taken yet: gathered here, in the transport
    and in libuv.
    """

    __slots__ = ("_binary", "_counted", "_free", "_limit", "_size", "_transport", "held", "payloads")

    def __init__(self, transport: asyncio.Transport, binary: bool, limit: int) -> None:
        self.payloads: list[bytes] = []
        self.held = False
        self._binary = binary
        self._counted = self._size = 0  # payloads held back, and their bytes
        self._limit = limit
        self._free = 0  # so much more may be written without asking the transport what waits in it
        self._transport = transport
        # The transport then says when a whole reply has room: it pauses past this, resumes at or below it.
        room = max(limit - MAX_FRAME_BYTES, 0)
        transport.set_write_buffer_limits(high=room, low=room)

    @property
    def backlog(self) -> int:
        """Bytes that the kernel has not taken."""
        return self._size + self._transport.get_write_buffer_size()

    @property
    def has_room(self) -> bool:
        """A reply of the greatest size fits (with a tiny limit: everything before it has gone)."""
        return self.backlog <= max(self._limit - MAX_FRAME_BYTES, 0)

    def write(self, payload: bytes) -> bool:
        """Write at once (behind what is gathered). False: the peer is too slow."""
        self.payloads.append(payload)
        return self.flush()

    def write_ahead(self, frame: bytes) -> bool:
        """One frame that does not wait for what is held back (a pong, an answer that is due). False: the peer is
        too slow."""
        if self.backlog + len(frame) > self._limit:
            return False
        self._free -= len(frame)
        self._transport.write(frame)
        return True

    def flush(self) -> bool:
        """Write what is gathered in one call. False: the peer is too slow; nothing was written."""
        payloads = self.payloads
        if not payloads:
            return True
        if self.held:
            fresh = payloads[self._counted :]
            self._size += sum(map(len, fresh)) + _HEAD_BYTES * len(fresh)
            self._counted += len(fresh)
            return self._size <= self._limit
        data = frames.messages(self._binary, payloads)
        self._free -= len(data)
        if self._free < 0:
            waiting = self._transport.get_write_buffer_size()
            self._free = self._limit - waiting - len(data)
            if waiting and self._free < 0:
                return False
        self.payloads = []
        self._transport.write(data)
        return True

    def hold(self) -> None:
        """Keep back what comes until `release`."""
        self.held = True

    def release(self, first: bytes | None = None) -> bool:
        """Write the payload `first`, then what was held. False: the peer is too slow."""
        self.held = False
        self._counted = self._size = 0
        if first is not None:
            self.payloads.insert(0, first)
        return self.flush()

    def drop(self) -> None:
        """Forget what is gathered."""
        self.held = False
        self._counted = self._size = 0
        self.payloads = []
