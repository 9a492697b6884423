"""The least that any server of this protocol must do, on the same libraries: what this machine can do today.

    .venv/bin/python scripts/benchmark/relay.py PORT

It logs everybody in, numbers messages, acknowledges and passes them on, and keeps nothing: no journal, no store, no
sync, no limits, no checks. The load generator of `hongyan bench` drives it as it drives a server.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import sys
import time

import msgspec
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from hongyan.gateway import frames
from hongyan.protocol.codec import JSON
from hongyan.protocol.state import Message

encode = msgspec.json.Encoder().encode


class SendData(msgspec.Struct):
    to: str
    content: msgspec.Raw


class Send(msgspec.Struct, tag="send_message"):
    data: SendData
    message_id: str


class LoginData(msgspec.Struct):
    token: str


class Login(msgspec.Struct, tag="login"):
    data: LoginData
    message_id: str


class Ack(msgspec.Struct, tag="ack"):
    pass


class Heartbeat(msgspec.Struct, tag="heartbeat"):
    pass


class GroupData(msgspec.Struct):
    group: str


class CreateGroup(msgspec.Struct, tag="create_group"):
    data: GroupData
    message_id: str


class JoinGroup(msgspec.Struct, tag="join_group"):
    data: GroupData
    message_id: str


class Presence(msgspec.Struct, tag="presence"):
    message_id: str


decode = msgspec.json.Decoder(Send | Login | Ack | Heartbeat | CreateGroup | JoinGroup | Presence).decode


class Relay:
    def __init__(self) -> None:
        self.users: dict[str, Peer] = {}
        self.groups: dict[str, list[Peer]] = {}
        self.seqs: dict[str, int] = {}
        self.number = itertools.count(1 << 60).__next__
        self.batch: list[tuple[Peer, Send]] = []
        self.loop = asyncio.get_running_loop()

    def send(self, peer: Peer, request: Send) -> None:
        """All of one turn of the loop are passed on together."""
        if not self.batch:
            self.loop.call_soon(self.flush)
        self.batch.append((peer, request))

    def flush(self) -> None:
        batch, self.batch = self.batch, []
        now, touched = time.time_ns() // 1_000_000, set()
        for peer, request in batch:
            to, user = request.data.to, peer.user
            key = to if to[0] == "#" else (f"{user}|{to[1:]}" if user <= to[1:] else f"{to[1:]}|{user}")
            seq = self.seqs[key] = self.seqs.get(key, 0) + 1
            number = self.number()
            peer.out.append(JSON.ack(request.message_id, to, seq, False, now, number))
            touched.add(peer)
            message = Message(key, seq, number, now, user, "", "text", bytes(request.data.content))
            push = JSON.message(to if to[0] == "#" else f"@{user}", message, False)
            direct = self.users.get(to[1:])
            for other in self.groups.get(to, ()) if to[0] == "#" else [direct] if direct is not None else ():
                if other is not peer:
                    other.out.append(push)
                    touched.add(other)
        for peer in touched:
            peer.flush()


class Peer(WSListener):
    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.user = ""
        self.out: list[bytes] = []

    def flush(self) -> None:
        out, self.out = self.out, []
        if self.transport is not None:
            self.transport.underlying_transport.write(frames.messages(False, out))

    def answer(self, kind: str, ref: str) -> None:
        self.out.append(JSON.envelope(kind, {"ref": ref}, 1, 1))
        self.flush()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport: WSTransport | None = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transport = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            if frame.msg_type == WSMsgType.CLOSE:
                transport.disconnect()
            return
        request = decode(frame.get_payload_as_memoryview())
        kind = type(request)
        if kind is Send:
            self.relay.send(self, request)
        elif kind is Login:
            claims = request.data.token.split(".")[1]
            self.user = msgspec.json.decode(base64.urlsafe_b64decode(claims + "=="))["sub"]
            self.relay.users[self.user] = self
            self.answer("login", request.message_id)
        elif kind in (CreateGroup, JoinGroup):
            self.relay.groups.setdefault(request.data.group, []).append(self)
            self.answer("join_group", request.message_id)
        elif kind is Presence:
            self.answer("presence", request.message_id)


async def main(port: int) -> None:
    relay = Relay()

    def accept(request: WSUpgradeRequest) -> Peer:
        return Peer(relay)

    server = await ws_create_server(accept, "127.0.0.1", port, backlog=4096, read_buffer_init_size=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
