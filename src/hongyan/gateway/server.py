"""The gateway: listens, shakes hands, counts who has not logged in, and stops gently."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Protocol

import structlog
from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from hongyan import address as addresses
from hongyan.accept import Acceptor, listen
from hongyan.config import Settings
from hongyan.gateway import frames
from hongyan.gateway.budget import Budget
from hongyan.gateway.connection import Connection, State
from hongyan.gateway.fanout import Fanout
from hongyan.gateway.heartbeat import Wheel
from hongyan.gateway.limits import FailedLogins
from hongyan.gateway.wire import Wire, WireProtocol
from hongyan.ids import Snowflake
from hongyan.link.base import EngineApi
from hongyan.metrics import Counters
from hongyan.protocol.codec import JSON, SUBPROTOCOLS, Codec
from hongyan.share import Share

PATH = "/ws"
HANDSHAKE_S = 10.0
# Bounds the kernel's memory a connection, and with it how far picows' read buffer (which never shrinks)
# grows while a peer floods.
RECEIVE_BUFFER_BYTES = 64 * 1024
RECONNECTS_A_SECOND = 500  # what a restart spreads its clients over

log = structlog.get_logger("hongyan.gateway")


class Claims(Protocol):
    @property
    def user(self) -> str: ...
    @property
    def expires_at_ms(self) -> int: ...


class Verifier(Protocol):
    def verify(self, token: str) -> Claims:
        """Raises `Refused` (`bad_token`, `token_expired`)."""


class Gateway(Fanout):
    """One listener of the process. `engine` may be set after construction, before `start`."""

    engine: EngineApi

    def __init__(
        self, settings: Settings, engine: EngineApi | None, verifier: Verifier, snowflake: Snowflake,
        counters: Counters, now_ms: Callable[[], int], monotonic: Callable[[], float], *,
        max_connections: int = 1_000_000, first_session: int = 1,
    ) -> None:  # fmt: skip
        """`max_connections`: TCP connections at a time, whatever they have come to. `first_session`: where the
        numbers of sessions begin."""
        super().__init__(settings.group_event_max_members, snowflake, counters, now_ms)
        if engine is not None:
            self.engine = engine
        self.settings = settings
        self.verifier = verifier
        self.monotonic = monotonic
        self.wheel = Wheel(monotonic)
        self.budget = Budget(
            settings.max_outbound_bytes, self._wires, lambda: counters.hit("max_outbound_bytes")
        )
        self.wheel.each_turn = self._look
        self.logins = Share(monotonic, floor_s=0.002, part=0.25, piece_s=0.0005)
        self.failed_logins = FailedLogins(settings.failed_logins_per_minute)
        self.draining = False
        self.next_session = itertools.count(first_session).__next__
        self._max_connections = max_connections
        # Where descriptors are few, those who have logged in keep half of them, and no address gets the rest.
        self._max_strangers = min(settings.max_unauthenticated, max(max_connections // 2, 1))
        self._max_strangers_of_one = min(
            settings.max_unauthenticated_per_address, max(max_connections // 8, 1)
        )
        self._acceptor: Acceptor | None = None
        self._strangers: dict[str, int] = {}  # address -> connections not logged in
        self._counted: dict[Wire | WireProtocol, str] = {}  # a protocol until it has its wire
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()  # while draining: everything admitted has been answered
        self._empty = asyncio.Event()  # while draining: no connection is left

    @property
    def port(self) -> int:
        """The bound port."""
        if self._acceptor is None:
            raise RuntimeError("the gateway is not listening")
        return self._acceptor.port

    @property
    def session_count(self) -> int:
        """Connections past the handshake, logged in or not."""
        return len(self.sessions)

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        settings = self.settings
        sockets = listen(settings.host, settings.port, "WebSockets", shared=settings.workers > 1)
        for listener in sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._acceptor = Acceptor(sockets, self._protocol, self._admit, self._gone)
        self._acceptor.start()
        self.wheel.start()

    # handshake

    def _protocol(self, address: str) -> WireProtocol:
        protocol = WireProtocol(
            self._accept, self._opened, self._gone, self.wheel, HANDSHAKE_S, self.settings.max_frame_bytes
        )
        self._count(protocol, address)
        return protocol

    def _admit(self, address: str) -> bool:
        """Whether a connection from `address` is taken at all. Those past the limits of strangers are told
        503, but not without end: past twice as many they are closed before a word."""
        assert self._acceptor is not None
        if len(self._acceptor.open) >= self._max_connections:
            limit = "max_connections"
        elif len(self._counted) >= 2 * self._max_strangers:
            limit = "max_unauthenticated"
        elif self._strangers.get(address, 0) >= 2 * self._max_strangers_of_one and not addresses.trusted(
            address, self.settings.trusted_proxies
        ):
            limit = "max_unauthenticated_per_address"
        else:
            return True
        self.counters.connections_refused += 1
        self.counters.hit(limit)
        return False

    def _opened(self, protocol: WireProtocol) -> None:
        assert protocol.wire is not None
        self._uncount(protocol)
        if self.draining:
            protocol.wire.abort()
            return
        self._count(protocol.wire, protocol.wire.address)

    def _gone(self, protocol: WireProtocol) -> None:
        assert self._acceptor is not None
        self._acceptor.gone(protocol)
        self._uncount(protocol)
        if protocol.wire is not None:
            self._uncount(protocol.wire)
        if self.draining and not self._acceptor.open:
            self._empty.set()

    def _accept(self, wire: Wire, request: WSUpgradeRequest) -> Any:
        """The answer to a handshake (RFC 6455 section 4.2.2)."""
        headers = request.headers
        if request.path.partition(b"?")[0] != PATH.encode():
            return _refusal(404, b"not found: the WebSocket is at /ws\n")
        forwarded_for = headers.getall("X-Forwarded-For", [])
        address = addresses.sender(wire.address, forwarded_for, self.settings.trusted_proxies)
        self._uncount(wire)
        total = len(self._counted) >= self._max_strangers
        if self.draining or total or self._strangers.get(address, 0) >= self._max_strangers_of_one:
            self.counters.handshakes_refused += 1
            if not self.draining:
                self.counters.hit("max_unauthenticated" if total else "max_unauthenticated_per_address")
            self._count(wire, address)  # until it is gone: else there would be no end of those
            after = 1 + int(self.logins.wait_s) + random.randrange(5)  # not all at once
            return _refusal(
                503, b"too many connections that have not logged in\n", {"Retry-After": str(after)}
            )
        self._count(wire, address)
        if "upgrade" in _tokens(headers.getall("Connection", [])):
            headers["Connection"] = (
                "upgrade"  # picows wants the one word; Firefox sends "keep-alive, Upgrade"
            )
        if headers.get("Upgrade", "").lower() != "websocket" or headers.get("Sec-WebSocket-Version") != "13":
            return _refusal(426, b"a WebSocket of version 13, please\n",
                            {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})  # fmt: skip
        offered = headers.getall("Sec-WebSocket-Protocol", [])
        codec, extra = self._negotiate(offered)
        if codec is None:
            return _refusal(400, b"none of these subprotocols is known\n")
        connection = Connection(self, wire, codec, address)
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(extra), connection)

    @staticmethod
    def _negotiate(offered: list[str]) -> tuple[Codec | None, dict[str, str]]:
        if not offered:
            return JSON, {}
        for name in (name.strip() for line in offered for name in line.split(",")):
            if name in SUBPROTOCOLS:
                return SUBPROTOCOLS[name], {"Sec-WebSocket-Protocol": name}
        return None, {}

    def _count(self, wire: Wire | WireProtocol, address: str) -> None:
        self._counted[wire] = address
        self._strangers[address] = self._strangers.get(address, 0) + 1

    def _uncount(self, wire: Wire | WireProtocol) -> None:
        address = self._counted.pop(wire, None)
        if address is not None:
            self._strangers[address] -= 1
            if not self._strangers[address]:
                del self._strangers[address]

    # connections

    def attach(self, connection: Connection) -> None:
        self.sessions[connection.session] = connection
        self.counters.connections = len(self.sessions)

    def logged_in(self, connection: Connection) -> None:
        self._uncount(connection.wire)
        self.counters.logins += 1
        self.counters.sessions += 1

    def detach(self, connection: Connection) -> None:
        if self.sessions.pop(connection.session, None) is None:
            return
        self.counters.connections = len(self.sessions)
        for topic in tuple(connection.topics):
            self.unsubscribe(connection, topic)
        if connection.state is State.READY:
            self.counters.sessions -= 1
        if connection.user:
            self.engine.logout(connection.session)

    def _wires(self) -> list[Wire]:
        opened = self._acceptor.open if self._acceptor is not None else ()
        return [protocol.wire for protocol in opened if protocol.wire is not None]

    def _look(self) -> None:
        self.budget.tick()
        self.counters.outbound_bytes = self.budget.waiting

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """A task for a request that waits; there is at most one a connection."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed", error=repr(task.exception()))
        self.answered()

    # stopping

    def answered(self) -> None:
        if self.draining and self.in_flight <= 0 and not self._tasks:
            self._idle.set()

    async def drain(self, deadline_s: float = 10.0) -> None:
        """Refuse new connections, answer what was admitted, close each with 1012 and a spread-out delay,
        all within `deadline_s`; what is left then is aborted. Idempotent."""
        if self._acceptor is None or self.draining:
            return
        self.draining = True
        end = self.monotonic() + deadline_s
        self._acceptor.close()
        for connection in tuple(self.sessions.values()):
            connection.stop_reading()
        self.answered()
        await _within(self._idle.wait(), deadline_s * 0.6, "requests were not answered before the stop")
        self.send_away()
        for protocol in tuple(self._acceptor.open):
            if protocol.wire is not None and protocol.wire.listener is None:
                protocol.wire.finish(None)
        if self._acceptor.open:
            await _within(self._empty.wait(), end - self.monotonic(), "connections did not end by themselves")
        for protocol in tuple(self._acceptor.open):
            if protocol.wire is not None:
                protocol.wire.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.sleep(0)
        self.wheel.stop()

    def send_away(self, sessions: Collection[int] | None = None, topics: Collection[str] = ()) -> None:
        """Close these, and those that carry one of the topics (None: all), with 1012 and a spread-out delay."""
        away = self.carrying(topics)
        chosen = self.sessions if sessions is None else sessions
        away.update(self.sessions[session] for session in chosen if session in self.sessions)
        spread_ms = max(2000, len(away) * 1000 // RECONNECTS_A_SECOND)
        for connection in away:
            delay = 200 + random.randrange(spread_ms)
            connection.close(frames.RESTART, f"retry_after_ms={delay}")


async def _within(waiting: Coroutine[Any, Any, Any], seconds: float, otherwise: str) -> None:
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        log.warning(otherwise)


def _tokens(lines: list[str]) -> set[str]:
    return {token.strip().lower() for line in lines for token in line.split(",")}


def _refusal(status: int, body: bytes, extra: dict[str, str] | None = None) -> WSUpgradeResponseWithListener:
    return WSUpgradeResponseWithListener(WSUpgradeResponse.create_error_response(status, body, extra), None)
