"""The asyncio client: one logical connection that outlives its sockets.

A thin shell: `Inbox` and `Outbox` decide, `Connector` (connection.py) moves frames. Built on `websockets`:
TLS, proxies and closing codes are settled there on any event loop, and a client is no hot path.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import msgspec

from hongyan.client.calls import Calls
from hongyan.client.connection import Connector, TokenProvider
from hongyan.client.errors import Closed, RequestTimeout, TooLarge, Unreachable
from hongyan.client.inbox import Ready
from hongyan.client.link import Link
from hongyan.client.models import Ack, Event, Message
from hongyan.client.outbox import Send

__all__ = ["Client"]


class Client(Calls):
    """One user on one device.

    `url`: `ws://host:8080/ws`; `token`: a JWT, or a function (plain or async) that returns one and is asked
    at each connection. `device_id`: keep it across runs, the server's cursors hang on it.
    `window`: sends not yet acknowledged; more callers of `send` wait. `in_order`: nothing overtakes in a
    conversation even when the server refuses a send for now (one in flight a conversation).
    `capacity`: messages queued for the application. `rate`, `burst`: requests a second the client allows
    itself (the server's default is 100 and 200); None: no limit. `connect_timeout`: seconds that entering
    `async with` waits for the first login (None: for ever). `connect_options` go to `websockets.connect`.

    Raises LoginRefused, Kicked, Replaced (all `Closed`) from whatever is being awaited, once the server has
    ended the client for good; every other loss of the connection is repaired.
    """

    def __init__(
        self, url: str, token: str | TokenProvider, device_id: str, *, platform: str = "python",
        window: int = 64, in_order: bool = False, capacity: int = 1000, rate: float | None = 90.0,
        burst: int = 150, connect_timeout: float | None = 30.0, request_timeout: float = 30.0,
        ack_interval: float = 0.05, connect_options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._link = Link(in_order, capacity, rate, burst, ack_interval)
        self._connector = Connector(self._link, url, token, device_id, platform, connect_options or {})
        self._window = asyncio.Semaphore(window)
        self._call_window = asyncio.Semaphore(64)
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._runner: asyncio.Task[None] | None = None
        self._current: Ready | None = None
        self._taker: asyncio.Task[Any] | None = None

    # life

    async def __aenter__(self) -> Client:
        """Connects and logs in. Raises Unreachable, LoginRefused, Kicked, Replaced."""
        self._runner = asyncio.create_task(self._connector.run())
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._link.first_login.wait()
        except TimeoutError:
            last = self._link.last_problem
            await self._stop()
            raise Unreachable(f"cannot reach {self._connector.url}: {last or 'no answer'}") from None
        except BaseException:
            await self._stop()
            raise
        if self._link.failure is not None:
            await self._stop()
            raise self._link.failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What this very task took and left without an error is done with. After an error, or in the hands of
        # another task (perhaps cancelled half-way, perhaps never looked at), it is not: it comes again.
        if kind is None and self._taker is asyncio.current_task():
            self.confirm()
        await self.close()

    async def close(self) -> None:
        """Acknowledge what is taken care of and close. Sends without an ack are given up. Twice is fine."""
        try:
            async with asyncio.timeout(2):
                await self._link.flush_acks()
        except TimeoutError:
            pass
        await self._stop()

    async def _stop(self) -> None:
        self._link.fail(Closed("the client is closed"))
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)

    @property
    def user_id(self) -> str:
        """The user the token names; "" before the first login."""
        return self._link.user_id

    @property
    def connected(self) -> bool:
        return self._link.ws is not None

    @property
    def unacknowledged(self) -> int:
        """Sends that no ack has come for."""
        return len(self._link.outbox)

    # messages

    async def messages(self) -> AsyncIterator[Message]:
        """Each message once, in seq order per conversation; not those that this client sent itself.

        Asking for the next one, or `confirm()`, says that the last is taken care of: only then is it
        acknowledged, and until then it comes again at the next start. So does leaving the `async with`
        without an exception, for the task that took it. One consumer at a time.
        """
        link = self._link
        while True:
            self.confirm()
            while (ready := link.inbox.take()) is None:
                if link.failure is not None:
                    if link.failure.code is None:
                        return
                    raise link.failure
                link.arrived.clear()
                await link.arrived.wait()
            self._current, self._taker = ready, asyncio.current_task()
            yield ready[1]

    def confirm(self) -> None:
        """The message that `messages()` gave last is taken care of: acknowledge it without asking for more."""
        ready, self._current = self._current, None
        if ready is not None:
            self._link.inbox.done(ready)
            self._link.wake.set()

    async def events(self) -> AsyncIterator[Event]:
        """Presence, group events, connection changes. The oldest go first when more than 1,000 wait."""
        link = self._link
        while True:
            while not link.events:
                if link.failure is not None:
                    return
                link.event_arrived.clear()
                await link.event_arrived.wait()
            yield link.events.popleft()

    async def wait_synced(self) -> None:
        """Returns once a sync has completed and no hole is known (the messages may still be queued)."""
        while not self._link.inbox.complete:
            if self._link.failure is not None:
                raise self._link.failure
            self._link.synced.clear()
            await self._link.synced.wait()

    # sending

    async def send(
        self, to: str, content: Any, content_type: str = "text", *, message_id: str | None = None
    ) -> Ack:
        """Send and wait until the message is durable. Resent across reconnects; stored once.

        Raises RequestRefused (for good), TooLarge, Closed; ValueError or TypeError for content that is no
        JSON. Cancelling gives up the wait; what has reached the server may still be stored.
        """
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        async with self._window:
            link = self._link
            if link.failure is not None:
                raise link.failure
            waiter: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
            key = message_id or secrets.token_urlsafe(16)
            send = Send(key, to, content_type, msgspec.Raw(text), waiter)
            if key in link.outbox:
                raise ValueError(f"message_id {key!r} is being sent already")
            if link.max_frame and len(send.frame()) > link.max_frame:
                raise TooLarge(f"{send.size} bytes; this server takes {link.max_frame}")
            link.outbox.add(send)
            link.wake.set()
            try:
                return await waiter
            except asyncio.CancelledError:
                # Given up by the caller: not resent after a reconnect, or it would arrive at a surprising time.
                link.outbox.give_up(key)
                raise

    async def request(self, type_: str, data: dict[str, Any], *, repeatable: bool = True) -> dict[str, Any]:
        """Any other request; returns the answer's `data`. Repeated after a reconnect if `repeatable`.

        Raises RequestRefused, RequestTimeout, ConnectionLost (not `repeatable`), Closed.
        """
        async with self._call_window:
            if self._link.failure is not None:
                raise self._link.failure
            call = self._link.call(type_, data, repeatable)
            try:
                async with asyncio.timeout(self._request_timeout):
                    return await call.waiter
            except TimeoutError:
                raise RequestTimeout(f"{type_}: no answer in {self._request_timeout:g} s") from None
            finally:
                self._link.calls.pop(call.ref, None)

    def _subscribed(self, users: Sequence[str], subscribe: bool | None) -> None:
        if subscribe is True:
            self._link.followed.update(dict.fromkeys(users))
        elif subscribe is False:
            for user in users:
                self._link.followed.pop(user, None)
