"""Between the socket and picows: closes that arrive, bounded memory, and who counts as a connection.

picows closes the socket 10 ms after a violation. With unread bytes in the kernel that sends a reset, which
can overtake the close frame: the client would see 1006. So picows gets a stand-in for the transport, and
every close goes one way: close frame, end of stream, then whatever the peer still sends is read and
dropped until it ends too, or the wheel aborts.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from picows import WSAutoPingStrategy, WSUpgradeRequest
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from hongyan.address import peer as plain_peer
from hongyan.gateway.frames import CLOSE
from hongyan.gateway.heartbeat import Wheel

if TYPE_CHECKING:
    from hongyan.gateway.listener import FrameListener

LINGER_S = 5.0
READ_BUFFER_BYTES = 2048
_trash = bytearray(65536)

Lost = Callable[[Exception | None], None]


class _Quiet:
    """picows' logger: it makes a `logging.Logger` a connection and would log what clients do wrong."""

    def isEnabledFor(self, level: int) -> bool:
        return False

    def _nothing(self, *args: object, **kwargs: object) -> None:
        pass

    debug = info = warning = error = exception = log = _nothing


_QUIET = _Quiet()


def _forgotten(exc: Exception | None) -> None:
    """What a `Wire` tells that the connection is lost, once the protocol knows."""


class _Discard(asyncio.BufferedProtocol):
    """Reads and drops until the peer ends; then the connection is lost for picows too."""

    __slots__ = ("_lost",)

    def __init__(self, lost: Lost) -> None:
        self._lost = lost

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(_trash)

    def buffer_updated(self, nbytes: int) -> None:
        pass

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)


class Wire:
    """What picows takes for its transport, and the one thing of a connection on the wheel."""

    __slots__ = ("_lost", "_transport", "address", "bucket", "finished", "listener", "wheel")

    def __init__(self, transport: asyncio.Transport, lost: Lost, wheel: Wheel, deadline: float) -> None:
        peer = transport.get_extra_info("peername")
        self.address: str = plain_peer(peer[0]) if isinstance(peer, tuple) else ""
        self.listener: FrameListener | None = None
        self.finished = False
        self.wheel = wheel
        self.bucket = -1
        self._transport = transport
        self._lost = lost
        wheel.schedule(self, deadline)  # of the handshake, until a listener takes over

    @property
    def transport(self) -> asyncio.Transport:
        return self._transport

    @property
    def backlog(self) -> int:
        """Bytes that wait for the peer, also behind a close frame that it has not read."""
        if self.finished or self.listener is None:
            return self._transport.get_write_buffer_size()
        return self.listener.backlog

    def too_slow(self) -> None:
        """Close with 4430; one that is closing and still takes nothing is aborted."""
        if self.finished or self.listener is None:
            self.abort()
        else:
            self.listener.too_slow()

    def finish(self, close_frame: bytes | None) -> None:
        """Send `close_frame` and end the stream; abort after `LINGER_S`. Idempotent."""
        if self.finished:
            return
        self.finished = True
        transport = self._transport
        self.wheel.schedule(self, self.wheel.now + LINGER_S)
        if transport.is_closing():
            return
        if close_frame is not None:
            transport.write(close_frame)
        transport.set_protocol(_Discard(self._lost))
        try:
            transport.write_eof()
            transport.resume_reading()
        except (OSError, RuntimeError):  # reset by the peer, which the loop has yet to hear of
            transport.abort()

    def ended(self) -> None:
        """The peer ended its side: the transport closes, at latest after `LINGER_S`."""
        if not self.finished:
            self.finished = True
            self.wheel.schedule(self, self.wheel.now + LINGER_S)

    def let_go(self) -> None:
        """The connection is gone. Protocol, wire and listener hold each other; unless that ends here they are
        garbage for the collector, which comes by for the old once in hours (app.py)."""
        self.finished = True
        self.wheel.remove(self)
        self._lost = _forgotten
        if self.listener is not None:
            self.listener.let_go()
            self.listener = None

    def on_deadline(self, now: float) -> float | None:
        if self.finished or self.listener is None:
            self._transport.abort()
            return None
        return self.listener.on_deadline(now)

    # what picows uses of a transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return 1  # never 0: picows would write to the socket past us

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The answer to the handshake, or picows' own close frame: the peer broke the framing."""
        if self.finished:
            return
        if self.listener is not None and data[0] == 0x80 | CLOSE:
            self.listener.violated(bytes(data))
        else:
            self._transport.write(data)

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.finish(None)

    def abort(self) -> None:
        self.finished = True
        self._transport.abort()


Accept = Callable[[Wire, WSUpgradeRequest], Any]
Hook = Callable[["WireProtocol"], None]


class WireProtocol(WSProtocol):  # type: ignore[misc]
    """picows' protocol of one connection, told its `Wire`. Its hot methods are picows' own."""

    def __init__(
        self, accept: Accept, opened: Hook, gone: Hook, wheel: Wheel, timeout_s: float, limit: int
    ) -> None:
        self.wire: Wire | None = None
        self._accept: Accept | None = accept
        self._opened: Hook | None = opened
        self._gone: Hook | None = gone
        self._wheel = wheel
        self._timeout_s = timeout_s
        itself = weakref.ref(self)  # picows keeps what it is given here for as long as no request comes

        def listener(request: WSUpgradeRequest) -> Any:
            protocol = itself()
            assert protocol is not None
            return protocol._listener(request)

        # host and path are a client's; no handshake timer, auto ping or auto pong: the wheel and we do that
        super().__init__(
            None, None, False, listener, _QUIET, True, None, False, 20, 20,
            WSAutoPingStrategy.PING_WHEN_IDLE, False, limit, None, READ_BUFFER_BYTES,
        )  # fmt: skip

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.wire = Wire(transport, self.connection_lost, self._wheel, self._wheel.now + self._timeout_s)
        super().connection_made(self.wire)
        if self._opened is not None:
            self._opened(self)

    def eof_received(self) -> bool:
        if self.wire is not None:
            self.wire.ended()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        gone, self._gone = self._gone, None
        self._accept = self._opened = None
        if self.wire is not None:
            self.wire.let_go()
        if gone is not None:
            gone(self)

    def _listener(self, request: WSUpgradeRequest) -> Any:
        assert self.wire is not None
        assert self._accept is not None
        return self._accept(self.wire, request)
