"""Listening sockets, and taking connections off them within a limit.

A server of the event loop takes whatever waits in the backlog before anyone can say no: thousands of
descriptors at once. Here each connection is admitted by its address before anything is spent on it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import structlog

from hongyan.address import in_url, peer
from hongyan.share import Share

BACKLOG = 4096
# What taking a connection costs the loop, in this turn and the next: descriptor, transport, handshake.
COST_S = 0.0004
_PAUSE_S = 0.2
_WILDCARD_V6 = "::"

log = structlog.get_logger("hongyan")


def listen(host: str, port: int, what: str, shared: bool = False, reuse: bool = True) -> list[socket.socket]:
    """A bound socket for each address of `host`, all on the same port; "::" takes IPv4 too. `shared`: other
    processes of ours listen there as well, and the kernel spreads connections over them (SO_REUSEPORT). Without
    `reuse` nobody else can bind it, even before it listens; connections that have ended may stand in the way.

    Raises OSError, with the address in its text, where one cannot be bound.
    """
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            made.append(listening)
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            if shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != _WILDCARD_V6)
            where: Any = address
            if len(made) > 1 and not port:  # a free port was asked for: the one that the first got
                where = (address[0], made[0].getsockname()[1], *address[2:])
            listening.bind(where)
    except OSError as error:
        for listening in made:
            listening.close()
        text = f"cannot listen for {what} on {in_url(host)}:{port}: {error.strerror}"
        raise OSError(error.errno, text) from None
    return made


class Acceptor:
    """Hands each connection of `sockets` to a `protocol(address)` of its own. `open` are those that have not
    ended: the owner calls `gone` for each, once or more often.

    `admit(address)` decides before; who is refused is closed at once. `failed`: one that was gone before its
    protocol heard of it.
    """

    def __init__(
        self, sockets: list[socket.socket], protocol: Callable[[str], Any], admit: Callable[[str], bool],
        failed: Callable[[Any], None] | None = None,
    ) -> None:  # fmt: skip
        self.open: set[Any] = set()
        self.port: int = sockets[0].getsockname()[1]
        self._sockets = sockets
        self._protocol = protocol
        self._admit = admit
        self._failed = failed or self.gone
        self._loop = asyncio.get_running_loop()
        self._share = Share(time.monotonic, floor_s=0.002, part=0.25, piece_s=COST_S)
        self._connecting: set[asyncio.Task[None]] = set()
        self._resuming: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Listen. Raises OSError where another process has begun to on the same port."""
        for listening in self._sockets:
            listening.listen(BACKLOG)
        self._watch()

    def close(self) -> None:
        """Take no more; what is open stays. Idempotent."""
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        sockets, self._sockets = self._sockets, []
        for listening in sockets:
            self._loop.remove_reader(listening)
            listening.close()

    def gone(self, protocol: Any) -> None:
        self.open.discard(protocol)

    def _watch(self) -> None:
        self._resuming = None
        for listening in self._sockets:
            self._loop.add_reader(listening, self._ready, listening)

    def _ready(self, listening: socket.socket) -> None:
        while self._share.fits():
            try:
                connection, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            whose = peer(address[0])
            if not self._admit(whose):
                connection.close()
                continue
            connection.setblocking(False)
            protocol = self._protocol(whose)
            self.open.add(protocol)
            task = self._loop.create_task(self._connect(connection, protocol))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket, protocol: Any) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it has gone already
            connection.close()
            self._failed(protocol)

    def _pause(self, error: OSError) -> None:
        """The machine has no room or no network (the process's own share is never used up): look again in a while."""
        log.warning("cannot take connections for now", error=str(error))
        for listening in self._sockets:
            self._loop.remove_reader(listening)
        if self._resuming is None:
            self._resuming = self._loop.call_later(_PAUSE_S, self._watch)
