"""HTTP over a real socket, with accounts that a test steers (protocol.md, "HTTP")."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher

from hongyan.auth import TokenSigner, TokenVerifier
from hongyan.config import Settings
from hongyan.errors import refused
from hongyan.http.server import HttpServer
from hongyan.metrics import Counters, exposition
from hongyan.passwords import Passwords

SECRET = b"s" * 32
REGISTER, LOGIN = "/api/v1/auth/register", "/api/v1/auth/login"
ALICE = {"user_id": "alice", "password": "correct horse"}


class FakeAccounts:
    """Users in a dict. `failure`: what the next registration raises."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.failure: Exception | None = None

    async def register(self, user: str, password_hash: str) -> None:
        if self.failure is not None:
            raise self.failure
        if user in self.users:
            raise refused("already_exists", "this user exists already", "user_id")
        self.users[user] = password_hash

    def password_hash(self, user: str) -> str | None:
        return self.users.get(user)


class Rig:
    """A started server and a client of it."""

    def __init__(self, options: dict[str, Any], settings: dict[str, Any]) -> None:
        self.settings = Settings(http_port=0, **settings)
        self.accounts = FakeAccounts()
        self.counters = Counters()
        self.ready = self.writable = True
        self.http = HttpServer(
            self.settings, self.accounts, TokenSigner(self.settings, SECRET), self.counters,
            lambda: self.ready, lambda: self.writable, self.metrics_text,
            passwords=Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)), **options,
        )  # fmt: skip

    async def metrics_text(self) -> bytes:
        return exposition(self.counters)

    async def __aenter__(self) -> Rig:
        await self.http.start()
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.http.port}", trust_env=False, timeout=20
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.aclose()
        await self.http.stop()

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def raw(self, *parts: bytes) -> bytes:
        """Send bytes, read until the server ends the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            async with asyncio.timeout(20):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


Start = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    rigs: list[Rig] = []

    async def begin(options: dict[str, Any] | None = None, **settings: Any) -> Rig:
        rigs.append(await Rig(options or {}, settings).__aenter__())
        return rigs[-1]

    yield begin
    for rig in rigs:
        await rig.__aexit__()


@pytest.fixture
async def rig(start: Start) -> Rig:
    return await start(failed_logins_per_minute=1000, registrations_per_minute=1000)


def problem(answer: httpx.Response, status: int, code: str | None, field: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["status"]) == ("about:blank", status)
    assert body["title"] and body["detail"]
    assert (body.get("code"), body.get("field")) == (code, field)


async def test_register_and_login_give_tokens_that_hold(rig):
    made = await rig.post(REGISTER, ALICE)
    assert made.status_code == 201
    again = await rig.post(LOGIN, ALICE)
    assert again.status_code == 200
    for answer in (made, again):
        data = answer.json()
        claims = TokenVerifier(rig.settings, SECRET).verify(data["token"])
        assert (data["user_id"], data["expires_at"]) == claims == ("alice", claims.expires_at_ms)
        assert answer.headers["cache-control"] == "no-store"
    assert rig.accounts.users["alice"].startswith("$argon2id$")
    assert (rig.counters.registrations, rig.counters.password_logins) == (1, 1)


async def test_who_exists_is_not_registered_again(rig):
    await rig.post(REGISTER, ALICE)
    problem(await rig.post(REGISTER, ALICE), 409, "already_exists", "user_id")
    rig.accounts.users["bob"] = ""  # created by a token
    problem(await rig.post(REGISTER, ALICE | {"user_id": "bob"}), 409, "already_exists", "user_id")


async def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(rig):
    await rig.post(REGISTER, ALICE)
    rig.accounts.users["bob"] = ""
    answers = [
        await rig.post(LOGIN, ALICE | {"password": "wrong horse"}),
        await rig.post(LOGIN, ALICE | {"user_id": "nobody"}),
        await rig.post(LOGIN, ALICE | {"user_id": "bob"}),
    ]
    for answer in answers:
        problem(answer, 401, "bad_token")
        assert answer.content == answers[0].content
        assert "www-authenticate" in answer.headers
    assert rig.counters.password_logins_failed == 3


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (refused("busy", "later", retry_after_ms=1500), 503, "2"),
        (refused("unavailable", "no space"), 503, None),
        (refused("already_exists", "taken since"), 409, None),
        (RuntimeError("a fault of ours"), 500, None),
    ],
)
async def test_what_accounts_raise_is_answered(rig, error, status, retry_after):
    rig.accounts.failure = error
    answer = await rig.post(REGISTER, ALICE)
    problem(answer, status, error.error.code if hasattr(error, "error") else "internal")
    assert answer.headers.get("retry-after") == retry_after
    assert "a fault of ours" not in answer.text


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "malformed", None),
        (b"{", "malformed", None),
        (b"[]", "malformed", None),
        (b"null", "malformed", None),
        (b"\xff\xfe{}", "malformed", None),
        (b"\xef\xbb\xbf{}", "malformed", None),
        (b'{"user_id":"alice","password":"12345678","x":NaN}', "malformed", None),
        (b"[" * 16_000, "malformed", None),
        (
            b'{"user_id":"alice","password":"12345678","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
            "malformed",
            None,
        ),
        (b"{}", "invalid_field", "user_id"),
        (b'{"user_id":null,"password":"12345678"}', "invalid_field", "user_id"),
        (b'{"user_id":"@alice","password":"12345678"}', "invalid_field", "user_id"),
        (b'{"user_id":"\\ud800","password":"12345678"}', "invalid_field", "user_id"),
        (b'{"user_id":"hongyan.x","password":"12345678"}', "invalid_field", "user_id"),
        (b'{"user_id":"alice"}', "invalid_field", "password"),
        (b'{"user_id":"alice","password":["12345678"]}', "invalid_field", "password"),
        (b'{"user_id":"alice","password":"\\ud80012345678"}', "invalid_field", "password"),
        (b'{"user_id":"alice","password":"1234567"}', "invalid_field", "password"),
    ],
)
async def test_bad_bodies(rig, body, code, field):
    for path in (REGISTER, LOGIN):
        problem(await rig.client.post(path, content=body), 400, code, field)


async def test_bodies_end_at_16_kib(rig):
    def body(size: int) -> bytes:
        start = json.dumps(ALICE | {"x": ""})[:-2].encode()
        return start + b"y" * (size - len(start) - 2) + b'"}'

    assert (await rig.client.post(REGISTER, content=body(16_384))).status_code == 201
    problem(await rig.client.post(REGISTER, content=body(16_385)), 413, "too_large")
    problem(await rig.client.post(REGISTER, content=body(500_000)), 413, "too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"y" * 1000

    problem(await rig.client.post(REGISTER, content=chunks()), 413, "too_large")


async def test_who_asks_first_is_refused_before_the_body(rig):
    head = f"POST {LOGIN} HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\nExpect: 100-continue\r\n\r\n"
    answer = await rig.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 413")


async def test_a_huge_body_is_refused_before_it_has_come(rig):
    head = f"POST {LOGIN} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n"
    answer = await rig.raw(head.encode(), b"{")
    assert answer.startswith(b"HTTP/1.1 413")


async def test_paths_and_methods(rig):
    problem(await rig.client.get("/nothing"), 404, None)
    problem(await rig.client.get("/healthz/"), 404, None)
    wrong = await rig.client.get(LOGIN)
    problem(wrong, 405, None)
    assert wrong.headers["allow"] == "POST"
    problem(await rig.client.post("/healthz"), 405, None)
    head = await rig.client.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")
    assert (await rig.client.head(LOGIN)).status_code == 405


async def test_health_readiness_metrics(rig):
    assert (await rig.client.get("/healthz")).status_code == 200
    assert (await rig.client.get("/readyz")).status_code == 200
    rig.writable = False
    assert (await rig.client.get("/readyz")).status_code == 503
    rig.ready, rig.writable = False, True
    assert (await rig.client.get("/readyz")).status_code == 503
    assert (await rig.client.get("/healthz")).status_code == 200
    metrics = await rig.client.get("/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "hongyan_connections 0.0" in metrics.text


async def test_register_and_login_can_be_off(start):
    rig = await start(registration=False)
    for path in (REGISTER, LOGIN):
        problem(await rig.post(path, ALICE), 404, None)
    assert (await rig.client.get("/healthz")).status_code == 200


async def test_guesses_are_throttled_an_address_and_user(start):
    rig = await start(failed_logins_per_minute=3)
    await rig.post(REGISTER, ALICE)
    for _ in range(5):  # what succeeds is not counted
        assert (await rig.post(LOGIN, ALICE)).status_code == 200
    wrong = ALICE | {"password": "wrong horse"}
    # Sent all at once: none may slip through while another is being checked.
    answers = await asyncio.gather(*(rig.post(LOGIN, wrong) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [401] * 3 + [429] * 5
    late = await rig.post(LOGIN, wrong)
    problem(late, 429, "rate_limited")
    assert 1 <= int(late.headers["retry-after"]) <= 60
    problem(await rig.post(LOGIN, wrong | {"user_id": "bob"}), 401, "bad_token")
    assert rig.counters.limit_hits == {"failed_logins_per_minute": 6}
    assert rig.counters.password_logins_throttled == 6


async def test_registrations_are_throttled_an_address(start):
    rig = await start(registrations_per_minute=2)
    for number in range(2):
        assert (await rig.post(REGISTER, ALICE | {"user_id": f"u{number}"})).status_code == 201
    problem(await rig.post(REGISTER, ALICE), 429, "rate_limited")
    assert rig.counters.limit_hits == {"registrations_per_minute": 1}


@pytest.mark.parametrize(
    ("proxies", "forwarded", "shared"),
    [
        ([], ["1.1.1.1", "2.2.2.2"], True),  # anybody can write this header
        (["10.0.0.0/8"], ["1.1.1.1", "2.2.2.2"], True),  # the peer is no proxy of ours
        (["127.0.0.0/8"], ["1.1.1.1", "2.2.2.2"], False),
        (["127.0.0.0/8"], ["1.1.1.1, 9.9.9.9", "2.2.2.2, 9.9.9.9"], True),  # the first hop is hearsay
        (["127.0.0.0/8", "9.9.9.9/32"], ["1.1.1.1, 9.9.9.9", "2.2.2.2, 9.9.9.9"], False),
        (["127.0.0.0/8"], ["nonsense", "rubbish"], True),
        (["127.0.0.0/8"], ["1.1.1.1", "::ffff:1.1.1.1"], True),  # one address, two spellings
    ],
)
async def test_the_address_is_the_peers_or_a_trusted_proxys_word(start, proxies, forwarded, shared):
    rig = await start(registrations_per_minute=1, trusted_proxies=proxies)
    statuses = []
    for number, value in enumerate(forwarded):
        body = ALICE | {"user_id": f"u{number}"}
        statuses.append((await rig.post(REGISTER, body, headers={"X-Forwarded-For": value})).status_code)
    assert statuses == [201, 429 if shared else 201]


async def test_a_body_that_does_not_come_is_given_up(start):
    rig = await start({"body_timeout_s": 0.05})
    head = f"POST {LOGIN} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"
    answer = await rig.raw(head.encode(), b'{"user')
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"malformed"' in answer


@pytest.mark.parametrize(
    "parts", [[b""], [b"GET /healthz HT"], [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET"]]
)
async def test_connections_that_dawdle_are_closed(start, parts):
    rig = await start({"patience_s": 0.1})
    await rig.raw(*parts)  # returns because the server ends it


async def test_connections_are_bounded(start):
    rig = await start({"max_connections": 3})
    held = [await asyncio.open_connection("127.0.0.1", rig.http.port) for _ in range(3)]
    # The order of accepting is the order of connecting: a fourth finds three.
    assert await rig.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == b""
    for _, writer in held:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n"])
async def test_what_is_not_http_is_refused(rig, raw):
    answer = await rig.raw(raw)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "malformed"


async def test_a_head_has_a_largest_size(rig):
    answer = await rig.raw(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert (await rig.client.get("/healthz")).status_code == 200


async def test_a_taken_port_is_an_error_that_names_it(rig):
    other = HttpServer(
        Settings(http_port=rig.http.port), rig.accounts, TokenSigner(rig.settings, SECRET), Counters(),
        lambda: True, lambda: True, lambda: b"",
    )  # fmt: skip
    with pytest.raises(OSError, match=rf"127\.0\.0\.1:{rig.http.port}: Address already in use"):
        await other.start()
    await other.stop()


async def test_stop_ends_idle_connections_frees_the_port_and_is_idempotent(start):
    rig = await start()
    assert (await rig.client.get("/healthz")).status_code == 200  # its connection stays open
    await rig.http.stop()
    await rig.http.stop()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", rig.http.port))


async def test_stop_lets_a_request_end(start):
    rig = await start()
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def register(user: str, password_hash: str) -> None:
        entered.set()
        await go_on.wait()

    rig.accounts.register = register
    request = asyncio.create_task(rig.post(REGISTER, ALICE))
    await entered.wait()
    stopping = asyncio.create_task(rig.http.stop())
    go_on.set()
    assert (await request).status_code == 201
    await stopping
