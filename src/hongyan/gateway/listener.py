"""RFC 6455 over picows and a `Wire`: whole messages out, violations answered. Knows no envelope."""

from __future__ import annotations

import structlog
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from hongyan.gateway import frames
from hongyan.gateway.frames import Assembler, Violation, check_text
from hongyan.gateway.wire import Wire

log = structlog.get_logger("hongyan.gateway")


class FrameListener(WSListener):
    """picows calls `on_ws_*`; subclasses get whole messages. After `end` nothing comes any more."""

    __slots__ = ("_assembler", "_max_bytes", "_text", "_wheel", "_ws", "closed", "kind", "last_seen", "wire")

    def __init__(self, wire: Wire, binary: bool, max_bytes: int) -> None:
        self.wire = wire
        self.kind = WSMsgType.BINARY if binary else WSMsgType.TEXT
        self._wheel = wire.wheel
        self.last_seen = wire.wheel.now
        self.closed = False
        self._text = not binary
        self._ws: WSTransport | None = None
        self._max_bytes = max_bytes
        self._assembler: Assembler | None = None  # while a message comes in fragments

    def on_message(self, payload: bytes) -> None:
        """A message of the connection's kind; text has been checked."""
        raise NotImplementedError

    def on_other(self, opcode: int, payload: bytes) -> None:
        """A message of the other kind."""
        raise NotImplementedError

    def on_ping(self, payload: bytes) -> None:
        raise NotImplementedError

    def on_pong(self) -> None:
        """An answer nobody asked for (section 5.5.3)."""

    def on_end(self, flush: bool) -> None:
        """The connection ends (once): with `flush`, write first what is gathered."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        # picows keeps the handshake for the connection's life: kilobytes of headers nobody asks for again
        transport.request.headers.clear()
        transport.response.headers.clear()
        self.wire.listener = self
        self._ws = transport

    def let_go(self) -> None:
        """The connection is gone: hold nothing that holds this."""
        self._ws = None

    @property
    def backlog(self) -> int:
        """Bytes that wait for the peer."""
        return self.wire.transport.get_write_buffer_size()

    def too_slow(self) -> None:
        """The peer does not take what waits for it."""
        self.close(frames.TOO_SLOW, "outbound buffer full", flush=False)

    def violated(self, close_frame: bytes) -> None:
        """picows found the framing broken, and this close frame says how. It reads a frame ahead: where
        the peer's close frame came before, that one is still to be delivered and is what counts."""
        handshake = self._ws.close_handshake if self._ws is not None else None
        if handshake is None or handshake.recv is None:
            self.end(close_frame)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self.closed:
            return
        self.last_seen = self._wheel.now
        try:
            if (
                self._assembler is None
                and frame.msg_type is self.kind
                and frame.fin
                and not (frame.rsv1 or frame.rsv2 or frame.rsv3)
            ):
                payload = frame.get_payload_as_bytes()
                if self._text and not payload.isascii():
                    check_text(payload)
                self.on_message(payload)
            else:
                self._uncommon(frame)
        except Violation as violation:
            self.close(violation.code, violation.reason)
        except Exception:
            log.exception("a frame failed")
            self.close(frames.INTERNAL, "internal error")

    def _uncommon(self, frame: WSFrame) -> None:
        reserved = bool(frame.rsv1 or frame.rsv2 or frame.rsv3)
        opcode = frame.msg_type.value
        assembler = self._assembler or Assembler(self._max_bytes)
        whole = assembler.feed(opcode, bool(frame.fin), reserved, frame.get_payload_as_bytes())
        self._assembler = assembler if assembler.open else None
        if whole is None:
            return
        opcode, payload = whole
        if opcode == self.kind.value:
            self.on_message(payload)
        elif opcode == frames.PING:
            self.on_ping(payload)
        elif opcode == frames.PONG:
            self.on_pong()
        elif opcode == frames.CLOSE:
            self.end(frames.encode_close(frames.decode_close(payload)))
        else:
            self.on_other(opcode, payload)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self.closed:
            self.closed = True
            self.on_end(False)

    def on_deadline(self, now: float) -> float | None:
        """The wheel's question: what is due, and when to ask again (None: never)."""
        return None

    def close(self, code: int, reason: str, flush: bool = True) -> None:
        """Say why and end. Idempotent."""
        self.end(frames.encode_close(code, reason), flush)

    def end(self, close_frame: bytes, flush: bool = True) -> None:
        """Send `close_frame` and end. Idempotent."""
        if not self.closed:
            self.closed = True
            self.on_end(flush)
            self.wire.finish(close_frame)
