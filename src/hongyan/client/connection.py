"""Connecting, logging in, moving frames, connecting again."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from hongyan.client import reconnect
from hongyan.client.errors import Closed, LoginRefused, RequestRefused
from hongyan.client.link import Link, envelope
from hongyan.client.models import Event

TokenProvider = Callable[[], str | Awaitable[str]]
SUBPROTOCOL = Subprotocol("hongyan.v1.json")
MAX_FRAME = 1 << 20  # the server's frames stay below 512 KiB
LOGIN_TIMEOUT_S = 10.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

log = logging.getLogger("hongyan.client")


class _Refused(Exception):
    """The login was answered with an error that may pass."""

    def __init__(self, error: RequestRefused) -> None:
        super().__init__(str(error))
        self.error = error


class Connector:
    """Keeps `link` connected until it fails for good. `run` is the one task that owns the socket."""

    def __init__(
        self, link: Link, url: str, token: str | TokenProvider, device_id: str, platform: str,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        self.url = url
        self._link = link
        self._token = token
        self._device_id = device_id
        self._platform = platform
        self._options = options
        if urlsplit(url).hostname in _LOOPBACK:  # no proxy can reach this machine's own loopback
            self._options = {"proxy": None} | options
        self._backoff = reconnect.Backoff(random.random)
        self._refused_token: str | None = None
        self._login_error: RequestRefused | None = None

    async def run(self) -> None:
        """Returns (or is cancelled) with `link.failure` set."""
        try:
            while self._link.failure is None:
                await self._once()
        except Closed as error:
            self._link.fail(error)
        except (
            Exception
        ) as error:  # a token provider that raises, or a fault of ours: waiters must learn of it
            failure = Closed(f"the client failed: {error!r}", 1011)
            failure.__cause__ = error
            self._link.fail(failure)

    async def _once(self) -> None:
        """One connection, from the token to the wait before the next."""
        code, reason, hint = 1006, "", None
        token = await self._fresh_token()
        self._login_error = None  # only now: why the last token was refused is told where there is no other
        try:
            async with connect(
                self.url, subprotocols=[SUBPROTOCOL], compression=None, ping_interval=None,
                max_size=MAX_FRAME, open_timeout=LOGIN_TIMEOUT_S, close_timeout=1, **self._options,
            ) as ws:  # fmt: skip
                try:
                    await self._session(ws, token)
                except ConnectionClosed as end:
                    if end.rcvd is not None:
                        code, reason = end.rcvd.code, end.rcvd.reason
                    elif end.sent is not None:
                        code, reason = end.sent.code, end.sent.reason
        except InvalidURI as error:
            raise Closed(str(error), 1002) from None
        except InvalidStatus as error:
            status = error.response.status_code
            if 400 <= status < 500 and status not in (408, 429):
                raise Closed(f"{self.url} answered HTTP {status}", 1002) from None
            reason = f"HTTP {status}"
        except _Refused as refused:
            reason = str(refused)
            after = refused.error.retry_after_ms
            hint = after / 1000 if after is not None else None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            reason = str(error) or type(error).__name__
        finally:
            self._link.lost()
        await self._after(code, reason, hint, token)

    async def _after(self, code: int, reason: str, hint: float | None, token: str) -> None:
        """Raise what ends the client, or wait until it may connect again."""
        if (end := reconnect.final(code, reason)) is not None:
            raise end
        if code == reconnect.NOT_LOGGED_IN:
            self._refused_token = token
            if not callable(self._token):
                raise self._login_refused(reason)
        if code == reconnect.TOO_BIG and not self._link.too_large():
            log.warning("closed with 1009 and nothing in flight")
        self._link.last_problem = reason or f"closed with {code}"
        delay = self._backoff.delay(hint if hint is not None else reconnect.retry_hint(reason))
        self._link.tell(Event("disconnected", {"code": code, "reason": reason, "retry_in_s": delay}))
        await asyncio.sleep(delay)

    def _login_refused(self, reason: str) -> LoginRefused:
        error = self._login_error
        return reconnect.login_refused(error.code if error else "", error.text if error else reason)

    async def _fresh_token(self) -> str:
        if not callable(self._token):
            return self._token
        while True:
            try:
                found = self._token()
                token = await found if inspect.isawaitable(found) else found
                break
            except OSError as error:  # the token's own source is unreachable for now
                self._link.last_problem = f"no token: {error}"
                await asyncio.sleep(self._backoff.delay())
        if token == self._refused_token:
            raise self._login_refused("the token provider has no new token")
        return token

    async def _session(self, ws: ClientConnection, token: str) -> None:
        """Log in, then move frames until the connection ends (ConnectionClosed)."""
        loop = asyncio.get_running_loop()
        answer = await self._log_in(ws, token)
        self._backoff.reset()
        self._link.logged_in(ws, answer, loop.time())
        heard = [loop.time()]
        helpers = [asyncio.create_task(self._pump(ws)), asyncio.create_task(self._watch(ws, heard))]
        try:
            while True:
                payload = await ws.recv()
                heard[0] = loop.time()
                try:
                    found = msgspec.json.decode(payload)
                    self._link.incoming(found, heard[0])
                    if found["type"] == "error" and "ref" not in found["data"]:
                        self._login_error = RequestRefused.from_data(found["data"])
                except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
                    log.warning("an envelope that protocol.md does not allow", exc_info=True)
        finally:
            for helper in helpers:
                helper.cancel()
            results = await asyncio.gather(*helpers, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
                    raise result

    async def _log_in(self, ws: ClientConnection, token: str) -> dict[str, Any]:
        data = {"token": token, "device_id": self._device_id, "platform": self._platform}
        await ws.send(envelope("login", data, "login"), text=True)
        async with asyncio.timeout(LOGIN_TIMEOUT_S):
            while True:
                found = msgspec.json.decode(await ws.recv())
                if found["type"] == "login":
                    answer: dict[str, Any] = found["data"]
                    return answer
                if found["type"] == "error":
                    error = self._login_error = RequestRefused.from_data(found["data"])
                    if error.code in ("busy", "unavailable", "internal"):
                        raise _Refused(error)
                    if error.code in ("invalid_field", "malformed", "too_large"):
                        # not closed by the server; the same again is no use
                        raise self._login_refused(error.text)

    async def _pump(self, ws: ClientConnection) -> None:
        """The only writer. Ends the connection when it cannot go on."""
        link, loop = self._link, asyncio.get_running_loop()
        try:
            while True:
                link.wake.clear()
                now = loop.time()
                for frame in link.due(now):
                    await ws.send(frame, text=True)
                if not link.wake.is_set():
                    try:
                        async with asyncio.timeout_at(link.next_due(now)):
                            await link.wake.wait()
                    except TimeoutError:
                        pass
        except BaseException:
            ws.transport.abort()
            raise

    async def _watch(self, ws: ClientConnection, heard: list[float]) -> None:
        """A server that stays silent through its own heartbeat answers is gone."""
        loop, patience = asyncio.get_running_loop(), 2 * self._link.heartbeat_s
        while (left := heard[0] + patience - loop.time()) > 0:
            await asyncio.sleep(left)
        ws.transport.abort()
