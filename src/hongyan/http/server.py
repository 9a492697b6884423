"""HTTP beside the gateway: accounts, health, metrics (protocol.md, "HTTP"), on Starlette and uvicorn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Protocol

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hongyan.auth import TokenSigner
from hongyan.config import Settings
from hongyan.errors import Refused, WireError, refused
from hongyan.metrics import Counters
from hongyan.passwords import MAX_BYTES, MIN_BYTES, Passwords
from hongyan.protocol.names import is_id, is_reserved

log = structlog.get_logger("hongyan.http")

MAX_BODY = 16 * 1024
BODY_TIMEOUT_S = 10
_STATUS = {
    "malformed": 400, "invalid_field": 400, "bad_token": 401, "already_exists": 409, "too_large": 413,
    "rate_limited": 429, "busy": 503, "unavailable": 503, "internal": 500,
}  # fmt: skip


class Accounts(Protocol):
    """What of the engine HTTP needs."""

    async def register(self, user: str, password_hash: str) -> None:
        """Raises Refused `already_exists`, `busy`, `unavailable`."""

    def password_hash(self, user: str) -> str | None: ...


class _Rate:
    """`limit` a minute for each key (GCRA), in bounded memory. `full` asks, `add` counts."""

    def __init__(self, limit: int, max_keys: int = 50_000) -> None:
        self._step = 60.0 / limit
        self._full_at: dict[object, float] = {}
        self._max_keys = max_keys

    def wait(self, key: object) -> float:
        """Seconds until the next is allowed; 0: now."""
        return max(0.0, self._full_at.get(key, 0.0) + self._step - time.monotonic() - 60.0)

    def add(self, key: object) -> None:
        now = time.monotonic()
        self._full_at[key] = max(self._full_at.get(key, 0.0), now) + self._step
        if len(self._full_at) > self._max_keys:
            live = sorted((at, key) for key, at in self._full_at.items() if at > now)
            self._full_at = {key: at for at, key in live[-self._max_keys // 2 :]}

    def refuse_if_full(self, key: object, what: str) -> None:
        wait = self.wait(key)
        if wait > 0:
            raise refused("rate_limited", f"too many {what}", retry_after_ms=int(wait * 1000) + 1)


class HttpServer:
    """Runs inside the server's event loop. `ready` answers /readyz, `metrics_text` /metrics."""

    def __init__(
        self, settings: Settings, accounts: Accounts, signer: TokenSigner, counters: Counters,
        ready: Callable[[], bool], metrics_text: Callable[[], bytes],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._accounts = accounts
        self._signer = signer
        self._counters = counters
        self._passwords = Passwords()
        self._registrations = _Rate(settings.registrations_per_minute)
        self._failed_logins = _Rate(settings.failed_logins_per_minute)
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = settings.http_port
        routes = [
            Route("/healthz", lambda request: PlainTextResponse("ok\n")),
            Route("/readyz", lambda request: _readiness(ready())),
            Route(
                "/metrics", lambda request: Response(metrics_text(), media_type="text/plain; version=0.0.4")
            ),
        ]
        if settings.registration_on:
            routes += [
                Route("/api/v1/auth/register", self._register, methods=["POST"]),
                Route("/api/v1/auth/login", self._login, methods=["POST"]),
            ]
        handlers: Any = {Refused: _on_refused, HTTPException: _on_http, Exception: _on_crash}
        self._app = Starlette(
            routes=routes,
            exception_handlers=handlers,
        )

    async def start(self) -> None:
        """Raises OSError where the port is taken."""
        config = uvicorn.Config(
            self._app, host=self._settings.host, port=self._settings.http_port, log_config=None, access_log=False,
            lifespan="off", server_header=False, timeout_keep_alive=15, limit_concurrency=1000, h11_max_incomplete_event_size=16_384,
        )  # fmt: skip
        listening = config_socket(config)
        server = self._server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        self.port = listening.getsockname()[1]
        await server.startup(sockets=[listening])
        self._task = asyncio.get_running_loop().create_task(server.main_loop(), name="http")

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
            try:
                async with asyncio.timeout(3):
                    await self._server.shutdown()
            except TimeoutError:
                pass
        self._passwords.close()

    async def _register(self, request: Request) -> Response:
        user, password = await self._credentials(request)
        address = self._address(request)
        self._registrations.refuse_if_full(address, "registrations from this address")
        self._registrations.add(address)
        if self._accounts.password_hash(user) is not None:
            raise refused("already_exists", "this user exists already", "user_id")
        await self._accounts.register(user, await self._passwords.hash(password))
        return self._answer(user, 201)

    async def _login(self, request: Request) -> Response:
        user, password = await self._credentials(request)
        key = (self._address(request), user)
        if self._failed_logins.wait(key) > 0:
            self._failed_logins.refuse_if_full(key, "failed logins")
        if not await self._passwords.verify(self._accounts.password_hash(user), password):
            self._failed_logins.add(key)
            raise refused("bad_token", "wrong password or unknown user")
        return self._answer(user, 200)

    def _answer(self, user: str, status: int) -> Response:
        token, expires_at = self._signer.sign(user, self._settings.token_ttl_s)
        body = {"user_id": user, "token": token, "expires_at": expires_at}
        return JSONResponse(body, status, headers={"Cache-Control": "no-store"})

    async def _credentials(self, request: Request) -> tuple[str, str]:
        try:
            value = json.loads((await _body(request)).decode())
        except (ValueError, RecursionError):
            raise refused("malformed", "the body is not JSON") from None
        if not isinstance(value, dict):
            raise refused("malformed", "the body is not an object")
        user, password = value.get("user_id"), value.get("password")
        if not isinstance(user, str) or not is_id(user) or is_reserved(user):
            raise refused("invalid_field", "a user_id is 1 to 64 of A-Za-z0-9_.-", "user_id")
        if not isinstance(password, str):
            raise refused("invalid_field", "a password is a string", "password")
        try:
            size = len(password.encode())
        except UnicodeEncodeError:
            raise refused("invalid_field", "a password is Unicode text", "password") from None
        if not MIN_BYTES <= size <= MAX_BYTES:
            raise refused("invalid_field", f"a password has {MIN_BYTES} to {MAX_BYTES} bytes", "password")
        return user, password

    def _address(self, request: Request) -> str:
        """The peer's, or the last hop before a configured proxy."""
        address = request.client.host if request.client is not None else ""
        proxies = self._settings.trusted_proxies
        hops = [hop.strip() for hop in request.headers.get("x-forwarded-for", "").split(",") if hop.strip()]
        try:
            while hops and any(ip_address(address) in network for network in proxies):
                address = str(ip_address(hops.pop()))
        except ValueError:
            pass
        return address


def _readiness(ready: bool) -> Response:
    return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise refused("too_large", f"a body has {MAX_BODY} bytes at most")
    except (TimeoutError, ClientDisconnect):
        raise refused("malformed", "the body did not arrive in time") from None
    return body


def config_socket(config: uvicorn.Config) -> Any:
    """A listening socket, or OSError (uvicorn's own way ends the process)."""
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        raise OSError(
            error.errno, f"cannot listen on {config.host}:{config.port}: {error.strerror}"
        ) from None
    return listening


def _problem(status: int, error: WireError | None, headers: dict[str, str] | None = None) -> Response:
    """RFC 9457."""
    body: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    if error is not None:
        body |= {"detail": error.text, "code": error.code}
        if error.field is not None:
            body["field"] = error.field
        if error.retry_after_ms is not None:
            headers = {**(headers or {}), "Retry-After": str(-(-error.retry_after_ms // 1000))}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _on_refused(request: Request, refusal: Refused) -> Response:
    return _problem(_STATUS.get(refusal.error.code, 400), refusal.error)


async def _on_http(request: Request, error: HTTPException) -> Response:
    return _problem(error.status_code, None, dict(error.headers or {}))


async def _on_crash(request: Request, error: Exception) -> Response:
    log.error("a request failed", path=request.url.path, error=repr(error))
    return _problem(500, WireError("internal", "the server failed; try again"))
