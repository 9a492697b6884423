"""A small server that speaks protocol.md over `websockets`, and does to its clients what networks do.

One user's view of the world: every client that logs in is the same user "alice" on some device; the other
side is scripted with `say`. Faults are switches, each used up where it is a count.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed


class FakeServer:
    def __init__(self) -> None:
        self.log: dict[str, list[dict[str, Any]]] = {}
        self.stored: dict[tuple[str, str], dict[str, Any]] = {}
        self.cursors: dict[tuple[str, str], int] = {}
        self.online: dict[ServerConnection, str] = {}
        self.requests: list[dict[str, Any]] = []
        self.seen = asyncio.Condition()
        self.lose_acks = 0  # store, then drop the connection instead of answering
        self.refuse: list[dict[str, Any]] = []  # errors that the next sends get
        self.double_pushes = False
        self.leave_out: set[int] = set()  # seqs that are never pushed
        self.good_tokens = {"good"}
        self.max_frame = 65536
        self.heartbeat_ms = 30_000
        self.mute = False
        self._server: Server | None = None

    async def __aenter__(self) -> FakeServer:
        self._server = await serve(
            self._serve, "127.0.0.1", 0, subprotocols=["hongyan.v1.json"], compression=None
        )  # type: ignore[list-item]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/ws"

    def store(
        self, conversation: str, content: Any, sender: str = "bob", key: str | None = None
    ) -> dict[str, Any]:
        log = self.log.setdefault(conversation, [])
        item = {
            "conversation": conversation, "from": sender, "seq": len(log) + 1, "content_type": "text",
            "content": content, "message_id": str(len(log) + 100), "timestamp": 1,
        } | ({"key": key} if key else {})  # fmt: skip
        log.append(item)
        return item

    async def say(self, conversation: str, content: Any) -> None:
        """Somebody else's message, stored and pushed (with the faults that are switched on)."""
        item = self.store(conversation, content)
        if item["seq"] not in self.leave_out:
            await self.push(
                "message", {k: v for k, v in item.items() if k not in ("message_id", "timestamp")}
            )

    async def push(self, type_: str, data: dict[str, Any]) -> None:
        for ws in list(self.online):
            for _ in range(2 if self.double_pushes else 1):
                await self._tell(ws, type_, data)

    async def drop_all(self, code: int | None = None, reason: str = "") -> None:
        for ws in list(self.online):
            self.online.pop(ws, None)
            if code is None:
                ws.transport.abort()
            else:
                await ws.close(code, reason)

    async def until(self, what: Any) -> None:
        """Wait until `what()` holds, looked at after each request."""
        async with asyncio.timeout(10), self.seen:
            await self.seen.wait_for(what)

    def of(self, type_: str) -> list[dict[str, Any]]:
        return [request["data"] for request in self.requests if request["type"] == type_]

    async def _serve(self, ws: ServerConnection) -> None:
        try:
            async for text in ws:
                request = json.loads(text)
                request.setdefault("data", {})
                await self._answer(ws, request, request["data"])
                async with self.seen:
                    self.requests.append(request)
                    self.seen.notify_all()
        except ConnectionClosed:
            pass
        finally:
            self.online.pop(ws, None)

    async def _tell(self, ws: ServerConnection, type_: str, data: dict[str, Any], id_: str = "7") -> None:
        if not self.mute:
            await ws.send(json.dumps({"type": type_, "data": data, "timestamp": 1, "message_id": id_}))

    async def _answer(self, ws: ServerConnection, request: dict[str, Any], data: dict[str, Any]) -> None:
        kind, ref = request["type"], {"ref": request["message_id"]} if "message_id" in request else {}
        device = self.online.get(ws, "")
        if kind == "login":
            if data["token"] not in self.good_tokens:
                await self._tell(ws, "error", ref | {"code": "bad_token", "text": "no", "retry": "never"})
                await ws.close(4401)
                return
            self.online[ws] = data["device_id"]
            answer = {"user_id": "alice", "device_id": data["device_id"], "session_id": "s", "features": []}
            limits = {"heartbeat_interval_ms": self.heartbeat_ms, "max_frame_bytes": self.max_frame}
            await self._tell(ws, "login", ref | answer | limits)
        elif kind == "ack":
            for conversation, seq in data["acks"].items():
                place = (device, conversation)
                self.cursors[place] = max(self.cursors.get(place, 0), min(seq, len(self.log[conversation])))
        elif kind == "sync_offline":
            await self._sync(ws, ref, data, device)
        elif kind == "history":
            after, limit = data.get("after", 0), data["limit"]
            found = self.log.get(data["conversation"], [])[after:]
            await self._tell(ws, "history", ref | {
                "conversation": data["conversation"], "messages": found[:limit], "has_more": len(found) > limit,
            })  # fmt: skip
        elif kind == "send_message":
            await self._send(ws, ref, request["message_id"], data)
        elif kind == "presence":
            await self._tell(
                ws, kind, ref | {"states": {u: {"online": True, "last_seen": None} for u in data["users"]}}
            )
        elif kind == "create_group" or kind == "heartbeat":
            await self._tell(ws, kind, ref | data)

    async def _sync(
        self, ws: ServerConnection, ref: dict[str, Any], data: dict[str, Any], device: str
    ) -> None:
        if data.get("page"):
            todo: list[list[Any]] = json.loads(data["page"])
        else:
            todo = []
            for conversation, log in self.log.items():
                start = data.get("cursors", {}).get(conversation, self.cursors.get((device, conversation), 0))
                if start < len(log):
                    todo.append([conversation, start, len(log)])
        items: list[dict[str, Any]] = []
        while todo and len(items) < data["limit"]:
            conversation, start, high = todo[0]
            room = min(high, start + data["limit"] - len(items))
            items += self.log[conversation][start:room]
            todo[0][1] = room
            if room == high:
                todo.pop(0)
        page = json.dumps(todo) if todo else None
        await self._tell(ws, "sync_offline", ref | {"messages": items, "has_more": bool(todo), "page": page})

    async def _send(self, ws: ServerConnection, ref: dict[str, Any], key: str, data: dict[str, Any]) -> None:
        if self.refuse:
            await self._tell(ws, "error", ref | self.refuse.pop(0))
            return
        first = self.stored.get((data["to"], key))
        item = first or self.store(data["to"], data["content"], "alice", key)
        self.stored[data["to"], key] = item
        if self.lose_acks:
            self.lose_acks -= 1
            self.online.pop(ws, None)
            ws.transport.abort()
            return
        await self._tell(
            ws, "ack",
            ref | {"conversation": data["to"], "seq": item["seq"], "duplicate": first is not None},
            item["message_id"],
        )  # fmt: skip
