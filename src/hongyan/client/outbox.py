"""What this client has sent and not seen acknowledged. Pure: frames and times in, decisions out.

Resends keep the original order. A refusal in the middle of a pipeline lets those behind it pass
(protocol.md, "Order, gaps, recovery"); `in_order` keeps one send a conversation in flight instead, so
that nothing can overtake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from hongyan.client.errors import RequestRefused

FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0
# Refused before anything was stored: the resend needs no `retry` look-up (protocol.md, "Error codes").
_NOTHING_STORED = frozenset({"rate_limited", "busy"})


@dataclass(slots=True, eq=False)
class Send:
    """One message on its way. `uncertain`: an earlier attempt may have been stored. `waiter` is the shell's."""

    key: str
    to: str
    content_type: str
    content: msgspec.Raw
    waiter: Any = None
    in_flight: bool = False
    uncertain: bool = False
    size: int = 0

    def frame(self) -> bytes:
        """The envelope as JSON bytes."""
        data: dict[str, Any] = {"to": self.to, "content_type": self.content_type, "content": self.content}
        if self.uncertain:
            data["retry"] = True
        frame = msgspec.json.encode({"type": "send_message", "message_id": self.key, "data": data})
        self.size = len(frame)
        return frame


class Outbox:
    """Unacknowledged sends in the order they were asked for. The shell bounds how many are added."""

    def __init__(self, in_order: bool = False) -> None:
        self._in_order = in_order
        self._sends: dict[str, Send] = {}
        self._waiting = 0
        self._pause = FIRST_PAUSE_S
        self.paused_until = 0.0

    def __len__(self) -> int:
        return len(self._sends)

    def __contains__(self, key: str) -> bool:
        return key in self._sends

    def add(self, send: Send) -> None:
        self._sends[send.key] = send
        self._waiting += 1

    def next(self, now: float) -> Send | None:
        """The next one to put on the wire; it counts as in flight from then on."""
        if not self._waiting or now < self.paused_until:
            return None
        busy: set[str] = set()
        for send in self._sends.values():
            if not send.in_flight and send.to not in busy:
                send.in_flight = True
                self._waiting -= 1
                return send
            if self._in_order:
                busy.add(send.to)
        return None

    def acknowledged(self, ref: str) -> Send | None:
        """The send that this `ack` answers, now done; None for one we do not know (or know no longer)."""
        self._pause = FIRST_PAUSE_S
        return self._remove(ref)

    def refused(self, ref: str, error: RequestRefused, now: float) -> Send | None:
        """The send that failed for good; None: it goes out again after a pause, or is not ours."""
        send = self._sends.get(ref)
        if send is None:
            return None
        if error.retry == "never":
            return self._remove(ref)
        if send.in_flight:
            send.in_flight = False
            self._waiting += 1
        send.uncertain = send.uncertain or error.code not in _NOTHING_STORED
        pause = self._pause if error.retry_after_ms is None else error.retry_after_ms / 1000
        until = now + min(pause, 60.0)
        if until > self.paused_until:  # refusals of one pipeline are one event: they double the pause once
            if now >= self.paused_until:
                self._pause = min(self._pause * 2, MAX_PAUSE_S)
            self.paused_until = until
        return None

    def lost(self) -> None:
        """The connection is gone: whatever was in flight has an unknown outcome and goes out again first."""
        for send in self._sends.values():
            if send.in_flight:
                send.in_flight, send.uncertain = False, True
                self._waiting += 1
        self.paused_until = 0.0

    def largest_in_flight(self) -> Send | None:
        """The one that a close with 1009 was about; removed."""
        flying = [send for send in self._sends.values() if send.in_flight]
        return self._remove(max(flying, key=lambda send: send.size).key) if flying else None

    def give_up(self, key: str) -> Send | None:
        """Forget a send, whatever became of it."""
        return self._remove(key)

    def all(self) -> list[Send]:
        return list(self._sends.values())

    def _remove(self, key: str) -> Send | None:
        send = self._sends.pop(key, None)
        if send is not None and not send.in_flight:
            self._waiting -= 1
        return send
