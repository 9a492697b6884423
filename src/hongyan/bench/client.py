"""One connection of the load generator, on picows: logs in, sends, acknowledges, and checks what it receives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from hongyan.bench import wire
from hongyan.bench.ledger import Ledger

if TYPE_CHECKING:
    from hongyan.bench.worker import Worker

_MESSAGE, _ACK = b"message", b"ack"
PATIENCE_S = 120.0  # for an answer
now_ns = time.monotonic_ns  # one clock for all processes of a machine


class Refused(Exception):
    """The server's `error`."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(f"{data['code']} ({data['text']})")
        self.code: str = data["code"]
        self.retry_s: float = data.get("retry_after_ms", 1000) / 1000


class Client(WSListener):
    """`acked` is called with each send that was answered (also where it was refused)."""

    def __init__(self, worker: Worker, index: int) -> None:
        self.index = index
        self.user = worker.plan.user(index)
        self.token = worker.plan.tokens[index - worker.first]
        self.ledger = Ledger(self.user)
        self.pending: dict[
            int, tuple[int, bytes]
        ] = {}  # ref -> when it was to be sent (monotonic ns), to whom
        self.acked: Callable[[Client], None] | None = None
        self.open = self.leaving = self.syncing = False
        self._worker = worker
        self._ws: WSTransport | None = None
        self._out: list[bytes] = []
        self._unacked: dict[bytes, int] = {}
        self._ref = worker.plan.first_ref
        self._known = not worker.plan.users  # users of our own making have no past
        self._retried: set[int] = set()  # refs whose outcome was unknown
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._asked = 0

    # sending

    def send(self, to: bytes, stamp_ns: int) -> None:
        """A message that was to be sent at `stamp_ns`."""
        self._ref = ref = self._ref + 1
        self.pending[ref] = stamp_ns, to
        self._worker.waiting += 1
        self._worker.interval.counts["sent"] += 1
        self._write(wire.send(to, stamp_ns, self._worker.filler, ref))

    async def ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """Any other request, again where the server says so. Returns the answer's data. Raises Refused, TimeoutError,
        ConnectionError."""
        while True:
            try:
                return await self._ask(kind, data)
            except Refused as refused:
                if refused.code not in ("busy", "rate_limited", "unavailable"):
                    raise
                self._worker.interval.counts["postponed"] += 1
                await asyncio.sleep(refused.retry_s)

    async def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        self._asked += 1
        ref = f"q{self._asked}"
        reply = self._replies[ref] = asyncio.get_running_loop().create_future()
        self._write(wire.request(kind, data, ref))
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer: dict[str, Any] = await reply
            return answer
        finally:
            self._replies.pop(ref, None)

    def beat(self) -> None:
        self._write(wire.request("heartbeat", {}))

    def _write(self, frame: bytes) -> None:
        if not self._out and not self._unacked:
            self._worker.touch(self)
        self._out.append(frame)

    def flush(self) -> None:
        """Everything of this turn of the loop, in one write."""
        out, unacked = self._out, self._unacked
        if unacked:
            out.append(wire.acks(unacked))
            self._unacked = {}
        if self._ws is not None and self.open:
            self._ws.underlying_transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    # logging in and out

    async def log_in(self) -> None:
        """Raises Refused."""
        await self.ask("login", {"token": self.token, "device_id": "bench"})

    async def look_back(self) -> None:
        """At the first login: conversations of an earlier run go on where they are. Raises Refused."""
        if self._known:
            return
        self._known = True
        page: dict[str, Any] = {}
        while True:
            answer = await self.ask("conversations", {"limit": 500, **page})
            for each in answer["conversations"]:
                self.ledger.start(each["conversation"].encode(), each["last_seq"])
            self.acknowledge([each["conversation"].encode() for each in answer["conversations"]])
            if not answer["has_more"]:
                return
            page = {"page": answer["page"]}

    def leave(self) -> None:
        """End the connection, of our own accord. From the next login until its sync pushes may be ahead; they come with
        the login's answer, before anybody has heard of that."""
        self.leaving = self.syncing = self.ledger.catching_up = True
        if self._ws is not None:
            self._ws.disconnect()

    # picows

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._ws = transport
        self.open = True
        self.leaving = False

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.open = False
        self._ws = None
        if not self.leaving:
            self._worker.interval.counts["lost connections"] += 1
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ConnectionError(f"the connection of {self.user} ended"))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            self._control(transport, frame)
            return
        payload = frame.get_payload_as_bytes()
        try:
            pieces = wire.cut(payload)
            kind = pieces[wire.KIND]
            if kind == _MESSAGE:
                self._pushed(pieces)
            elif kind == _ACK:
                self._answered(pieces)
            else:
                self._other(msgspec.json.decode(payload))
        except (ValueError, KeyError, IndexError, TypeError):
            self._worker.problem(f"{self.user} cannot read {payload[:200]!r}")

    def _pushed(self, pieces: list[bytes]) -> None:
        interval, conversation, seq = self._worker.interval, pieces[wire.CONVERSATION], wire.seq(pieces)
        interval.counts["pushed"] += 1
        if not self._out and not self._unacked:
            self._worker.touch(self)
        if self.ledger.take(conversation, seq):
            self._unacked[conversation] = self.ledger.last[conversation] if self.ledger.catching_up else seq
        stamp = wire.stamp(pieces[wire.CONTENT])
        if stamp:
            interval.push_us.append((now_ns() - stamp) // 1000)

    def _answered(self, pieces: list[bytes]) -> None:
        interval = self._worker.interval
        ref = int(pieces[wire.REF])
        sent = self.pending.pop(ref, None)
        if sent is None:
            self._worker.problem(f"{self.user} got a second answer to {ref}")
            return
        self._worker.waiting -= 1
        interval.counts["acked"] += 1
        interval.ack_us.append((now_ns() - sent[0]) // 1000)
        self.ledger.take(pieces[wire.ACKED], wire.seq(pieces))
        if self._retried:
            self._settled(ref)
        if self.acked is not None:
            self.acked(self)

    def _other(self, message: dict[str, Any]) -> None:
        kind, data = message["type"], message["data"]
        reply = self._replies.get(data.get("ref", ""))
        if reply is not None and not reply.done():
            if kind == "error":
                reply.set_exception(Refused(data))
            else:
                reply.set_result(data)
        elif kind == "error":
            self._refused(data)
        elif kind == "presence":
            self._worker.interval.counts["presence pushes"] += 1

    def _refused(self, data: dict[str, Any]) -> None:
        self._worker.interval.counts[data["code"]] += 1
        ref = int(data["ref"]) if data.get("ref", "").isdecimal() else 0
        if ref not in self.pending:
            return
        wait = max(data.get("retry_after_ms", 100), 10) / 1000
        loop = asyncio.get_running_loop()
        if data["code"] in ("unavailable", "internal"):  # it may be stored all the same
            self.ledger.catching_up = True  # what follows it may come before its answer
            self._retried.add(ref)
            loop.call_later(wait, self._again, ref)
            return
        del self.pending[ref]
        self._worker.waiting -= 1
        self._settled(ref)
        if self.acked is not None:
            loop.call_later(wait, self.acked, self)

    def _again(self, ref: int) -> None:
        if self.open and ref in self.pending:
            stamp_ns, to = self.pending[ref]
            self._write(wire.send(to, stamp_ns, self._worker.filler, ref, retry=True))

    def resend(self) -> None:
        """After a reconnect: what was not answered, in order."""
        for ref in self.pending:
            self._retried.add(ref)
            self._again(ref)

    def _settled(self, ref: int) -> None:
        self._retried.discard(ref)
        if not self._retried and not self.syncing and self.ledger.catching_up:
            self.ledger.caught_up()

    async def sync(self) -> int:
        """Catch up after a reconnect, in pages. Returns how many messages came. Raises Refused, ConnectionError."""
        self.syncing = self.ledger.catching_up = True
        self.resend()
        count, page = 0, None
        while True:
            data: dict[str, Any] = {"limit": 500} if page is None else {"limit": 500, "page": page}
            answer = await self.ask("sync_offline", data)
            for item in answer["messages"]:
                conversation = item["conversation"].encode()
                if self.ledger.take(conversation, item["seq"]):
                    count += 1
            if answer["messages"]:
                self.acknowledge({item["conversation"].encode() for item in answer["messages"]})
            if not answer["has_more"]:
                break
            page = answer["page"]
        self.syncing = False
        if not self._retried:
            self.ledger.caught_up()
        self._worker.interval.counts["synced"] += count
        return count

    def acknowledge(self, conversations: Iterable[bytes]) -> None:
        """What is known of them without a hole."""
        if not self._out and not self._unacked:
            self._worker.touch(self)
        for conversation in conversations:
            if last := self.ledger.last.get(conversation):
                self._unacked[conversation] = last

    def _control(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            code = frame.get_close_code()
            if not self.leaving:
                self._worker.interval.counts[f"closed with {getattr(code, 'value', code)}"] += 1
            transport.disconnect()
