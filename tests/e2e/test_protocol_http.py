"""protocol.md, "HTTP"."""

from __future__ import annotations

import json
import time

import httpx
import jwt
import pytest

from outsider import Outsider
from server_process import ServerProcess

pytestmark = pytest.mark.slow
REGISTER = "/api/v1/auth/register"
LOGIN = "/api/v1/auth/login"


@pytest.fixture
async def http(server):
    async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=20) as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].split(";")[0] == "application/problem+json"
    body = answer.json()
    assert body["type"] == "about:blank"
    assert body["status"] == status
    assert body["code"] == code
    assert body["title"]


async def test_register_then_login_then_chat(server, http, name):
    body = {"user_id": name("a"), "password": "correct horse"}
    answer = await http.post(REGISTER, json=body)
    assert answer.status_code == 201
    data = answer.json()
    assert set(data) == {"user_id", "token", "expires_at"}
    assert data["user_id"] == name("a")
    claims = jwt.decode(data["token"], server.secret, algorithms=["HS256"])
    assert claims["sub"] == name("a")
    assert data["expires_at"] == claims["exp"] * 1000
    problem(await http.post(REGISTER, json=body), 409, "already_exists")
    again = await http.post(LOGIN, json=body)
    assert again.status_code == 200
    client = await Outsider.connect(server.url)
    await client.login(again.json()["token"])
    await client.close()
    problem(await http.post(LOGIN, json=body | {"password": "wrong horse"}), 401, "bad_token")
    problem(await http.post(LOGIN, json=body | {"user_id": name("nobody")}), 401, "bad_token")


async def test_a_user_created_by_a_token_cannot_be_registered_over(http, login, name):
    await login(name("a"))
    problem(
        await http.post(REGISTER, json={"user_id": name("a"), "password": "12345678"}), 409, "already_exists"
    )
    problem(await http.post(LOGIN, json={"user_id": name("a"), "password": "12345678"}), 401, "bad_token")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed"),
        (b"[]", "malformed"),
        (b"\xff", "malformed"),
        (b'{"user_id":"x"}', "invalid_field"),
        (b'{"user_id":"a b","password":"12345678"}', "invalid_field"),
        (b'{"user_id":3,"password":"12345678"}', "invalid_field"),
        (b'{"user_id":"hongyan.x","password":"12345678"}', "invalid_field"),
        (b'{"user_id":"ok","password":"1234567"}', "invalid_field"),
        (json.dumps({"user_id": "ok", "password": "x" * 257}).encode(), "invalid_field"),
        (json.dumps({"user_id": "ok", "password": "é" * 129}).encode(), "invalid_field"),
    ],
)
async def test_a_bad_body_is_400(http, body, code):
    problem(await http.post(REGISTER, content=body), 400, code)


async def test_a_body_above_16_kib_is_413(http):
    problem(await http.post(LOGIN, content=b'{"user_id":"' + b"x" * 16_400 + b'"}'), 413, "too_large")


async def test_an_unknown_path_is_404_and_a_wrong_method_is_no_crash(http):
    answer = await http.get("/api/v1/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"].split(";")[0] == "application/problem+json"
    assert (await http.get(LOGIN)).status_code in (404, 405)


async def test_health_readiness_and_metrics(http, login, name):
    await (await login(name("a"))).say(f"@{name('a')}", 1)
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200
    metrics = await http.get("/metrics")
    assert metrics.status_code == 200
    assert "hongyan_" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain")


async def test_no_secret_is_logged(server, http, login, name):
    password = "a-password-to-look-for"
    answer = await http.post(REGISTER, json={"user_id": name("a"), "password": password})
    client = await login(name("b"))
    await client.say(f"@{name('b')}", "content-to-look-for")
    for secret in (password, answer.json()["token"], "content-to-look-for"):
        assert secret not in server.log


async def test_throttles_answer_429_with_retry_after(server_factory, name):
    server: ServerProcess = server_factory(registrations_per_minute=2, failed_logins_per_minute=2)
    async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=20) as http:
        for n in range(2):
            made = await http.post(REGISTER, json={"user_id": f"u{n}", "password": "12345678"})
            assert made.status_code == 201
        late = await http.post(REGISTER, json={"user_id": "u9", "password": "12345678"})
        problem(late, 429, "rate_limited")
        assert int(late.headers["retry-after"]) >= 1
        for _ in range(2):
            problem(await http.post(LOGIN, json={"user_id": "u0", "password": "wrong-one"}), 401, "bad_token")
        late = await http.post(LOGIN, json={"user_id": "u0", "password": "wrong-one"})
        problem(late, 429, "rate_limited")
        assert int(late.headers["retry-after"]) >= 1


async def test_an_external_key_mints_tokens_and_turns_register_off(server_factory, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate()
    pem = tmp_path / "public.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    server: ServerProcess = server_factory(
        jwt_algorithm="EdDSA", jwt_public_key=str(pem), jwt_audience="chat", jwt_issuer="me"
    )
    claims = {"sub": "a", "exp": int(time.time()) + 600, "aud": "chat", "iss": "me"}
    client = await Outsider.connect(server.url)
    await client.login(jwt.encode(claims, key, algorithm="EdDSA"))
    await client.close()
    wrong = [
        jwt.encode(claims | {"aud": "x"}, key, algorithm="EdDSA"),
        jwt.encode(claims | {"iss": "x"}, key, algorithm="EdDSA"),
    ]
    wrong.append(jwt.encode({k: v for k, v in claims.items() if k != "aud"}, key, algorithm="EdDSA"))
    wrong.append(jwt.encode(claims, pem.read_bytes().hex(), algorithm="HS256"))  # algorithm confusion
    for token in wrong:
        client = await Outsider.connect(server.url)
        assert (await client.refused("login", {"token": token, "device_id": "d"}))["code"] == "bad_token"
        assert (await client.closed())[0] == 4401
        await client.close()
    async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
        assert (await http.post(REGISTER, json={"user_id": "x", "password": "12345678"})).status_code == 404
        assert (await http.post(LOGIN, json={"user_id": "x", "password": "12345678"})).status_code == 404
