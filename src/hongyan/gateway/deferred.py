"""What a connection has read behind a request under way, to be taken in order once that is answered. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from hongyan.errors import WireError
from hongyan.protocol.requests import Ack, BadRequest, Request, SendMessage

# The longest that a send waits behind another request of its connection. With the committer's ANSWER_MS it is
# below the ten seconds within which every send is answered.
DEFER_S = 3.0

_OVERDUE = WireError("unavailable", "the requests before this one are not answered yet; resend with retry")


class Deferred:
    """Messages of the peer; None stands for one of the wrong kind. All were in one read: reading stops with the request
    that they wait for, until none of them is left, so they are due at the same time."""

    __slots__ = ("_decode", "_payloads")

    def __init__(self, decode: Callable[[bytes], Request]) -> None:
        self._decode = decode
        self._payloads: deque[bytes | None] = deque()

    def __bool__(self) -> bool:
        return bool(self._payloads)

    def add(self, payload: bytes | None) -> None:
        self._payloads.append(payload)

    def take(self) -> bytes | None:
        """The next in order."""
        return self._payloads.popleft()

    def overdue(self) -> list[tuple[WireError, str | None]]:
        """Take out the sends, also those that cannot be read: with the time that comes after their turn they would be
        past their ten seconds. Returns an error and a ref for each. Everything else keeps its turn: a read may wait
        for room as long as it takes."""
        kept, answers = deque[bytes | None](), list[tuple[WireError, str | None]]()
        for payload in self._payloads:
            try:
                request = self._decode(payload) if payload is not None else None
            except BadRequest as bad:
                if bad.kind == "send_message":
                    answers.append((bad.error, bad.ref))
                    continue
            else:
                if type(request) is SendMessage:
                    answers.append((_OVERDUE, request.message_id))
                    continue
            kept.append(payload)
        self._payloads = kept
        return answers

    def acks(self) -> Iterator[tuple[str, int]]:
        """The acknowledgements among them: address and `seq`."""
        for payload in self._payloads:
            try:
                request = self._decode(payload) if payload is not None else None
            except BadRequest:
                continue
            if type(request) is Ack:
                data = request.data
                yield from (
                    data.acks if data.acks is not None else {data.conversation: data.seq or 0}
                ).items()
