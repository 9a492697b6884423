"""One peer as a connection sees it: what is written to it, and how fast what it sends is taken. Knows no request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hongyan.errors import WireError
from hongyan.gateway import frames, limits
from hongyan.gateway.listener import FrameListener
from hongyan.gateway.outbox import Outbox
from hongyan.gateway.wire import Wire
from hongyan.protocol.codec import Codec

if TYPE_CHECKING:
    from hongyan.gateway.server import Gateway


class Peer(FrameListener):
    """`_busy` is the subclass's: reading stops while it is set (`_pause`), and goes on after (`_resume`)."""

    __slots__ = (
        "_busy", "_limited", "_malformed", "_quiet", "_rate", "_slowed", "codec", "gateway", "outbox",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, wire: Wire, codec: Codec) -> None:
        settings = gateway.settings
        super().__init__(wire, codec.binary, settings.max_frame_bytes)
        self.gateway = gateway
        self.codec = codec
        self.outbox = Outbox(wire.transport, codec.binary, settings.outbound_buffer_bytes)
        self._limited = settings.rate_limit > 0
        self._rate = limits.Rate(settings.rate_limit, settings.rate_burst)
        self._quiet = limits.Rate(settings.rate_limit, settings.rate_burst)
        self._malformed: limits.Recent | None = None
        self._busy = self._slowed = False

    # writing

    def envelope(self, kind: str, data: dict[str, Any]) -> bytes:
        gateway = self.gateway
        return self.codec.envelope(kind, data, gateway.now_ms(), gateway.snowflake.envelope())

    def error(self, error: WireError, ref: str | None) -> bytes:
        """The payload that says so, counted."""
        gateway = self.gateway
        errors = gateway.counters.errors
        errors[error.code] = errors.get(error.code, 0) + 1
        return self.codec.error(error, ref, gateway.now_ms(), gateway.snowflake.envelope())

    def push(self, payload: bytes) -> None:
        if not self.closed and not self.outbox.write(payload):
            self.too_slow()

    def write_error(self, error: WireError, ref: str | None) -> None:
        self.push(self.error(error, ref))

    @property
    def backlog(self) -> int:
        return self.outbox.backlog

    def too_slow(self) -> None:
        if not self.closed:
            self.gateway.counters.slow_consumers += 1
            super().too_slow()

    # rates

    def _allowed(self, now: float, ref: str | None) -> bool:
        wait = self._rate.take(now)
        if wait:
            self._over_rate(now, wait, ref)
        return not wait

    def _over_rate(self, now: float, wait: float, ref: str | None) -> None:
        self.gateway.counters.rate_limited += 1
        if self._rate.floods(now):
            self.gateway.counters.floods += 1
            self.close(frames.FLOODING, "too many requests")
        else:
            text = "too many requests on this connection"
            self.write_error(WireError("rate_limited", text, retry_after_ms=int(wait * 1000) + 1), ref)

    def _count_quiet(self, now: float, count: int = 1) -> None:
        """What is never refused is read more slowly past the rate."""
        wait = self._quiet.force(now, count)
        if wait and not self._slowed:
            self._slowed = True
            self._pause()
        if wait:
            self.wire.wheel.slow(self._unslow, now + wait)

    def _unslow(self) -> None:
        self._slowed = False
        self._resume()

    def _reject(self, error: WireError, ref: str | None, now: float) -> None:
        self.write_error(error, ref)
        if error.code == "malformed":
            self.gateway.counters.malformed += 1
            if self._malformed is None:
                self._malformed = limits.Recent(limits.MALFORMED)
            if self._malformed.add(now):
                self.close(frames.POLICY, "too many malformed messages")

    def _pause(self) -> None:
        if not self.wire.finished:
            self.wire.transport.pause_reading()

    def _resume(self) -> None:
        if not (self._busy or self._slowed or self.wire.finished or self.gateway.draining):
            self.last_seen = self.wire.wheel.now  # what the peer sent meanwhile could not be seen
            self.wire.transport.resume_reading()

    # control frames, the end

    def on_ping(self, payload: bytes) -> None:
        self._count_quiet(self.gateway.monotonic())
        if not self.outbox.write_ahead(frames.encode(frames.PONG, payload)):
            self.too_slow()

    def on_pong(self) -> None:
        self._count_quiet(self.gateway.monotonic())

    def end(self, close_frame: bytes, flush: bool = True) -> None:
        if not self.closed:
            code = frames.close_code(close_frame)
            closes = self.gateway.counters.closes
            peers = code is not None and code >= frames.OF_APPLICATIONS and code not in frames.OURS
            label = "other" if peers else str(code)
            closes[label] = closes.get(label, 0) + 1
            if code == frames.TOO_BIG:
                self.gateway.counters.hit("max_frame_bytes")
        super().end(close_frame, flush)

    def on_end(self, flush: bool) -> None:
        if flush and not self.outbox.held:
            self.outbox.flush()
        self.outbox.drop()
        self.wire.wheel.forget(self._unslow)
