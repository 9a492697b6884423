"""The endpoints (protocol.md, "HTTP"): accounts, health, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hongyan import address
from hongyan.auth import TokenSigner
from hongyan.config import Settings
from hongyan.errors import Refused, refused
from hongyan.http.accounts import Accounts
from hongyan.http.body import BODY_TIMEOUT_S, json_object
from hongyan.http.problem import Endpoint, answering, on_http_exception
from hongyan.metrics import CONTENT_TYPE, Counters
from hongyan.passwords import Passwords, check_password
from hongyan.protocol.names import is_id, is_reserved
from hongyan.throttle import Throttle


class AccountRoutes:
    """Register and login by password."""

    def __init__(
        self, settings: Settings, accounts: Accounts, signer: TokenSigner, counters: Counters,
        passwords: Passwords, body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._accounts = accounts
        self._signer = signer
        self._counters = counters
        self._passwords = passwords
        self._body_timeout_s = body_timeout_s
        self._registrations = Throttle(settings.registrations_per_minute)
        self._failures = Throttle(settings.failed_logins_per_minute)

    async def register(self, request: Request) -> Response:
        # Before the body is read: the limit is on attempts, and names are guessed by attempts.
        wait = self._registrations.take(self._address(request))
        if wait:
            raise self._throttled(
                "registrations_per_minute", "too many registrations from this address", wait
            )
        user, password = await self._credentials(request)
        if self._accounts.password_hash(user) is not None:
            raise refused("already_exists", "this user exists already", "user_id")
        await self._accounts.register(user, await self._passwords.hash(password))
        self._counters.registrations += 1
        return self._token(user, 201)

    async def login(self, request: Request) -> Response:
        user, password = await self._credentials(request)
        key = (self._address(request), user)
        # Counted before the check and given back after it, so that guesses sent all at once count too.
        wait = self._failures.take(key)
        if wait:
            self._counters.password_logins_throttled += 1
            raise self._throttled("failed_logins_per_minute", "too many failed logins of this user", wait)
        failed = False
        try:
            failed = not await self._passwords.verify(self._accounts.password_hash(user), password)
        finally:
            if not failed:
                self._failures.give_back(key)
        if failed:
            self._counters.password_logins_failed += 1
            raise refused("bad_token", "wrong password or unknown user")
        self._counters.password_logins += 1
        return self._token(user, 200)

    def _address(self, request: Request) -> str:
        peer = request.client.host if request.client is not None else ""
        forwarded_for = request.headers.getlist("x-forwarded-for")
        return address.sender(peer, forwarded_for, self._settings.trusted_proxies)

    async def _credentials(self, request: Request) -> tuple[str, str]:
        try:
            body = await json_object(request, self._body_timeout_s)
        except Refused as refusal:
            if refusal.error.code == "too_large":
                self._counters.hit("http_body_bytes")
            raise
        user = body.get("user_id")
        if not isinstance(user, str) or not is_id(user) or is_reserved(user):
            text = "a user_id is 1 to 64 of A-Za-z0-9_.- and does not start with hongyan."
            raise refused("invalid_field", text, "user_id")
        return user, check_password(body.get("password"))

    def _token(self, user: str, status: int) -> Response:
        token, expires_at = self._signer.sign(user, self._settings.token_ttl_s)
        body = {"user_id": user, "token": token, "expires_at": expires_at}
        return JSONResponse(body, status, {"Cache-Control": "no-store"})

    def _throttled(self, limit: str, text: str, wait: float) -> Exception:
        self._counters.hit(limit)
        return refused("rate_limited", text, retry_after_ms=int(wait * 1000) + 1)


def application(
    accounts: AccountRoutes | None, ready: Callable[[], bool], writable: Callable[[], bool],
    metrics_text: Callable[[], Awaitable[bytes]],
) -> Starlette:  # fmt: skip
    """The ASGI application. `accounts` None: register and login are not there (404); they are refused while
    not `ready`. Traffic can be taken when `ready` and `writable`."""

    def when_ready(endpoint: Endpoint) -> Endpoint:
        async def answer(request: Request) -> Response:
            if not ready():
                raise refused("unavailable", "the server is starting or stopping", retry_after_ms=1000)
            return await endpoint(request)

        return answering(answer)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if not ready():
            return PlainTextResponse("not ready\n", 503)
        return (
            PlainTextResponse("ready\n") if writable() else PlainTextResponse("storage refuses writes\n", 503)
        )

    async def metrics(request: Request) -> Response:
        return Response(await metrics_text(), headers={"Content-Type": CONTENT_TYPE})

    routes = [
        Route("/healthz", answering(healthz)),
        Route("/readyz", answering(readyz)),
        Route("/metrics", answering(metrics)),
    ]
    if accounts is not None:
        routes += [
            Route("/api/v1/auth/register", when_ready(accounts.register), methods=["POST"]),
            Route("/api/v1/auth/login", when_ready(accounts.login), methods=["POST"]),
        ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: on_http_exception})
    app.router.redirect_slashes = False  # a redirect would go where the request's Host header points
    return app
