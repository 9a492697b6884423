"""A client written from protocol.md alone, on another WebSocket library than the server's.

It pulls: nothing is read from the socket but while a caller waits, so a client that asks for nothing
is a slow consumer. What comes before the awaited answer is kept in `unread`, in order.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

JSON = "hongyan.v1.json"
MSGPACK = "hongyan.v1.msgpack"
PATIENCE = 10.0  # seconds; every request is answered within that (protocol.md, send_message)

Envelope = dict[str, Any]

# One count for all clients: two devices of a user must not share an idempotency key by chance.
_ids = itertools.count(1)


class Outsider:
    """One connection. Not logged in until `login`."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.binary = ws.subprotocol == MSGPACK
        self.unread: list[Envelope] = []

    @classmethod
    async def connect(cls, url: str, subprotocol: str | None = JSON, **options: Any) -> Outsider:
        offered = None if subprotocol is None else [Subprotocol(subprotocol)]
        ws = await connect(
            url, subprotocols=offered, compression=None, ping_interval=None, max_size=None, proxy=None,
            open_timeout=PATIENCE, close_timeout=2, **options,
        )  # fmt: skip
        return cls(ws)

    async def close(self) -> None:
        await self.ws.close()

    def abort(self) -> None:
        """Drop the connection without a word, as a lost network does."""
        self.ws.transport.abort()

    async def raw(self, payload: str | bytes) -> None:
        await self.ws.send(payload)

    def encode(self, envelope: Envelope) -> str | bytes:
        return msgspec.msgpack.encode(envelope) if self.binary else json.dumps(envelope)

    async def send(self, type_: str, data: Any = None, message_id: str | None = None) -> str:
        """One request, not waiting for its answer. Returns its message_id."""
        message_id = message_id or f"r{next(_ids)}"
        envelope: Envelope = {"type": type_, "message_id": message_id}
        if data is not None:
            envelope["data"] = data
        await self.raw(self.encode(envelope))
        return message_id

    async def receive(self, timeout: float = PATIENCE) -> Envelope:
        """The next envelope off the wire, checked against the rules for every server envelope."""
        async with asyncio.timeout(timeout):
            payload = await self.ws.recv()
        assert isinstance(payload, bytes) == self.binary, "a frame of the other kind"
        assert len(payload) <= 512 * 1024, "a frame above 512 KiB"
        envelope: Envelope = msgspec.msgpack.decode(payload) if self.binary else json.loads(payload)
        assert isinstance(envelope["type"], str)
        assert isinstance(envelope["data"], dict)
        assert type(envelope["timestamp"]) is int
        assert isinstance(envelope["message_id"], str)
        assert 0 < int(envelope["message_id"]) < 1 << 63
        return envelope

    async def until(self, wanted: Callable[[Envelope], bool], timeout: float = PATIENCE) -> Envelope:
        """The first unread envelope that fits; others stay unread."""
        for position, envelope in enumerate(self.unread):
            if wanted(envelope):
                return self.unread.pop(position)
        async with asyncio.timeout(timeout):
            while True:
                envelope = await self.receive(timeout)
                if wanted(envelope):
                    return envelope
                self.unread.append(envelope)

    async def reply(self, ref: str, timeout: float = PATIENCE) -> Envelope:
        return await self.until(lambda envelope: envelope["data"].get("ref") == ref, timeout)

    async def push(self, type_: str, timeout: float = PATIENCE, **fields: Any) -> Envelope:
        """The next push of that type whose data has these fields."""

        def fits(envelope: Envelope) -> bool:
            data = envelope["data"]
            return (
                envelope["type"] == type_ and "ref" not in data
                and all(data.get(key) == value for key, value in fields.items())
            )  # fmt: skip

        return await self.until(fits, timeout)

    async def request(self, type_: str, data: Any = None, message_id: str | None = None) -> Envelope:
        return await self.reply(await self.send(type_, data, message_id))

    async def ask(self, type_: str, data: Any = None) -> Envelope:
        """A request that must succeed. Returns the answer's data."""
        answer = await self.request(type_, data)
        assert answer["type"] == type_, answer
        body: Envelope = answer["data"]
        return body

    async def refused(self, type_: str, data: Any = None, message_id: str | None = None) -> Envelope:
        """A request that must be refused. Returns the error's data."""
        answer = await self.request(type_, data, message_id)
        assert answer["type"] == "error", answer
        body: Envelope = answer["data"]
        assert isinstance(body["text"], str)
        assert body["text"]
        assert body["retry"] in ("never", "backoff", "after_sync")
        return body

    async def login(self, token: str, device: str = "d1", **more: Any) -> Envelope:
        return await self.ask("login", {"token": token, "device_id": device, **more})

    async def say(self, to: str, content: Any, key: str | None = None, retry: bool = False) -> Envelope:
        """Send a message and wait for its ack (whole envelope)."""
        answer = await self.reply(await self.post(to, content, key, retry))
        assert answer["type"] == "ack", answer
        return answer

    async def post(self, to: str, content: Any, key: str | None = None, retry: bool = False) -> str:
        data = {"to": to, "content_type": "text", "content": content}
        return await self.send("send_message", data | ({"retry": True} if retry else {}), key)

    async def sync(self, **first: Any) -> list[Envelope]:
        """All pages of one sync."""
        page = await self.ask("sync_offline", first)
        items: list[Envelope] = list(page["messages"])
        while page["has_more"]:
            page = await self.ask("sync_offline", {"page": page["page"]})
            items += page["messages"]
        return items

    async def all_history(self, conversation: str) -> list[Envelope]:
        items: list[Envelope] = []
        while True:
            after = items[-1]["seq"] if items else 0
            page = await self.ask("history", {"conversation": conversation, "after": after, "limit": 500})
            items += page["messages"]
            if not page["has_more"]:
                return items

    async def barrier(self) -> None:
        """Returns once everything the server sent before has been read."""
        await self.ask("heartbeat")

    async def closed(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Read on until the server closes; (code, reason)."""
        async with asyncio.timeout(timeout):
            try:
                while True:
                    self.unread.append(await self.receive(timeout))
            except ConnectionClosed as end:
                return (end.rcvd.code, end.rcvd.reason) if end.rcvd is not None else (1006, "")
