"""uvicorn inside the server's event loop: no signals of its own, no access log, bounded in connections
and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hongyan.accept import Acceptor, listen
from hongyan.auth import TokenSigner
from hongyan.config import Settings
from hongyan.errors import WireError
from hongyan.http.accounts import Accounts
from hongyan.http.body import BODY_TIMEOUT_S
from hongyan.http.problem import problem
from hongyan.http.routes import AccountRoutes, application
from hongyan.metrics import Counters
from hongyan.passwords import Passwords

MAX_CONNECTIONS = 1000
_HEAD_BYTES = 16 * 1024
_KEEP_ALIVE_S = 5


class _Protocol(H11Protocol):
    """uvicorn has no limit on connections that say nothing, nor on how long a request takes to arrive or
    an answer to be read. Here a request has `patience_s` from its connection's start, or from the
    answer before it, to be over."""

    patience_s = 30.0
    acceptor: Acceptor
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.acceptor.gone(self)
        if self._alarm is not None:
            self._alarm.cancel()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP at all never reaches the application, whose errors look like this."""
        answer = problem(WireError("malformed", msg))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def on_response_complete(self) -> None:
        self._arm()
        super().on_response_complete()

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_later(self.patience_s, self.transport.abort)


class HttpServer:
    """`ready` opens the accounts and, with `writable`, answers /readyz; `metrics_text` answers /metrics.
    `port` is the real one once started."""

    def __init__(
        self, settings: Settings, accounts: Accounts, signer: TokenSigner, counters: Counters,
        ready: Callable[[], bool], writable: Callable[[], bool], metrics_text: Callable[[], Awaitable[bytes]], *,
        passwords: Passwords | None = None, body_timeout_s: float = BODY_TIMEOUT_S, patience_s: float = 30.0,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:  # fmt: skip
        self.port = settings.http_port
        self._host = settings.host
        self._passwords = passwords or Passwords()
        routes = None
        if settings.registration_on:
            routes = AccountRoutes(settings, accounts, signer, counters, self._passwords, body_timeout_s)
        self._app = application(routes, ready, writable, metrics_text)
        self._counters = counters
        self._patience_s = patience_s
        self._max_connections = max_connections
        self._server: uvicorn.Server | None = None
        self._acceptor: Acceptor | None = None
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError, with the address in its text, where it cannot listen."""
        config = uvicorn.Config(
            self._app, http=_Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_keep_alive=_KEEP_ALIVE_S, h11_max_incomplete_event_size=_HEAD_BYTES,
            proxy_headers=False,  # it would trust X-Forwarded-For from 127.0.0.1, whatever our settings say
        )  # fmt: skip
        config.load()
        sockets = listen(self._host, self.port, "HTTP")
        server = self._server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)

        def protocol(address: str) -> _Protocol:
            made = _Protocol(config, server.server_state, server.lifespan.state)
            made.acceptor, made.patience_s = acceptor, self._patience_s
            return made

        acceptor = self._acceptor = Acceptor(sockets, protocol, self._admit)
        self.port = acceptor.port
        # `serve` would take over the signals and the listening: its three steps are taken one by one.
        await server.startup(sockets=[])
        acceptor.start()
        self._loop = asyncio.get_running_loop().create_task(server.main_loop(), name="http")

    def _admit(self, address: str) -> bool:
        assert self._acceptor is not None
        if len(self._acceptor.open) < self._max_connections:
            return True
        self._counters.connections_refused += 1
        self._counters.hit("http_connections")
        return False

    async def stop(self, patience_s: float = 3.0) -> None:
        """No new connection; what is under way has `patience_s`. Idempotent; also before `start`."""
        server, self._server = self._server, None
        if server is not None:
            await self._shut_down(server, patience_s)
        self._passwords.close()

    async def _shut_down(self, server: uvicorn.Server, patience_s: float) -> None:
        assert self._acceptor is not None
        self._acceptor.close()
        server.should_exit = True
        if self._loop is not None:
            await asyncio.wait([self._loop])
        try:
            async with asyncio.timeout(patience_s):
                await server.shutdown(sockets=[])
        except TimeoutError:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
