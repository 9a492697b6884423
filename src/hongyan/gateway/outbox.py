"""What waits to be written to one connection, bounded in bytes; nothing here ever waits."""

from __future__ import annotations

import asyncio

MAX_FRAME_BYTES = 512 * 1024  # no frame of the server is larger (protocol.md, "Transport")


class Outbox:
    """Frames, or pieces of them, are gathered in `frames` and written joined, once a batch (`flush`).

    `limit` bounds what the peer has not taken yet: gathered here, in the transport and in libuv.
    """

    __slots__ = ("_counted", "_free", "_limit", "_size", "_transport", "frames", "held")

    def __init__(self, transport: asyncio.Transport, limit: int) -> None:
        self.frames: list[bytes] = []
        self.held = False
        self._counted = self._size = 0  # frames held back, and their bytes
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

    def write(self, frame: bytes) -> bool:
        """Write at once (behind what is gathered). False: the peer is too slow."""
        self.frames.append(frame)
        return self.flush()

    def write_control(self, frame: bytes) -> bool:
        """One frame that does not wait for what is held back (a pong, an answer that is due). False: the peer is
        too slow."""
        if self.backlog + len(frame) > self._limit:
            return False
        self._free -= len(frame)
        self._transport.write(frame)
        return True

    def flush(self) -> bool:
        """Write what is gathered in one call. False: the peer is too slow; nothing was written."""
        frames = self.frames
        if not frames:
            return True
        if self.held:
            self._size += sum(map(len, frames[self._counted :]))
            self._counted = len(frames)
            return self._size <= self._limit
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self._free -= len(data)
        if self._free < 0:
            waiting = self._transport.get_write_buffer_size()
            self._free = self._limit - waiting - len(data)
            if waiting and self._free < 0:
                return False
        self.frames = []
        self._counted = self._size = 0
        self._transport.write(data)
        return True

    def hold(self) -> None:
        """Keep back what comes until `release`."""
        self.held = True

    def release(self, first: bytes | None = None) -> bool:
        """Write `first`, then what was held. False: the peer is too slow."""
        self.held = False
        if first is not None:
            self.frames.insert(0, first)
        return self.flush()

    def drop(self) -> None:
        """Forget what is gathered."""
        self.frames = []
        self._counted = self._size = 0
        self.held = False
