"""Tokens: what is taken, and every way in which one is not (protocol.md, "HTTP"; RFC 7515, 7519)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from hongyan.auth import LEEWAY_S, MAX_TOKEN, Claims, TokenSigner, TokenVerifier
from hongyan.config import ConfigError, Settings
from hongyan.errors import Refused

SECRET = b"s" * 32
NOW = 1_800_000_000


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(payload: str | dict[str, Any], header: dict[str, Any] | None = None, key: bytes = SECRET) -> str:
    """A token with a genuine HS256 signature around whatever it is given."""
    body = payload if isinstance(payload, str) else json.dumps(payload)
    head = {"alg": "HS256", "typ": "JWT"} if header is None else header
    signed = f"{b64(json.dumps(head).encode())}.{b64(body.encode())}"
    return f"{signed}.{b64(hmac.digest(key, signed.encode(), hashlib.sha256))}"


def verifier(now: float = NOW, **settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(**settings), SECRET, lambda: now)


def code(token: str, checker: TokenVerifier | None = None) -> str:
    with pytest.raises(Refused) as caught:
        (checker or verifier()).verify(token)
    assert token not in str(caught.value) or not token
    return caught.value.error.code


GOOD = {"sub": "alice", "exp": NOW + 60}


def test_what_is_signed_verifies():
    for settings in ({}, {"jwt_audience": "chat", "jwt_issuer": "me"}):
        token, expires_at_ms = TokenSigner(Settings(**settings), SECRET, lambda: NOW + 0.9).sign("alice", 60)
        assert expires_at_ms == (NOW + 60) * 1000
        assert verifier(**settings).verify(token) == Claims("alice", (NOW + 60) * 1000)


def test_forge_makes_good_tokens():
    assert verifier().verify(forge(GOOD)).user == "alice"


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": NOW - LEEWAY_S + 1}, None),
        ({"exp": NOW - LEEWAY_S}, "token_expired"),
        ({"exp": 0}, "token_expired"),
        ({"exp": -5}, "token_expired"),
        ({"exp": NOW + 0.5}, None),
        ({"exp": True}, "bad_token"),
        ({"exp": None}, "bad_token"),
        ({"exp": str(NOW + 60)}, "bad_token"),
        ({"exp": [NOW + 60]}, "bad_token"),
        ({"exp": 10**400}, "bad_token"),
        ({"exp": 1e300}, None),
        ({"nbf": NOW + LEEWAY_S}, None),
        ({"nbf": NOW + LEEWAY_S + 1}, "bad_token"),
        ({"nbf": "now"}, "bad_token"),
        ({"nbf": None}, "bad_token"),
        ({"iat": NOW + 10_000}, None),
        ({"sub": None}, "bad_token"),
        ({"sub": 7}, "bad_token"),
        ({"sub": ""}, "bad_token"),
        ({"sub": "@alice"}, "bad_token"),
        ({"sub": "a" * 65}, "bad_token"),
        ({"sub": "alice\n"}, "bad_token"),
        ({"sub": "hongyan.system"}, "bad_token"),
        ({"aud": "chat"}, "bad_token"),
        ({"aud": []}, "bad_token"),
        ({"aud": None}, "bad_token"),
        ({"iss": "anyone"}, None),
        ({"sub": "@alice", "exp": 0}, "bad_token"),  # expired is said of tokens that were good
    ],
)
def test_claims(claims, expected):
    token = forge(GOOD | claims)
    if expected is None:
        assert verifier().verify(token).user == "alice"
    else:
        assert code(token) == expected


@pytest.mark.parametrize("exp", ["NaN", "Infinity", "-Infinity", "1e999", "{}"])
def test_a_date_that_is_no_number(exp):
    assert code(forge(f'{{"sub":"alice","exp":{exp}}}')) == "bad_token"


def test_a_huge_date_fits_a_clock():
    assert verifier().verify(forge(GOOD | {"exp": 1e300})).expires_at_ms <= 2**40 * 1000


@pytest.mark.parametrize("payload", ['{"sub":"alice"}', '{"exp":1900000000}', "[]", "null", "{", "[" * 5000])
def test_payloads_that_are_not_claims(payload):
    assert code(forge(payload)) == "bad_token"


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "HS512"},
        {"alg": None},
        {},
        {"alg": "HS256", "crit": ["exp"], "exp": 1},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "crit": "exp"},
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "crit": ["b64"], "b64": True},
    ],
)
def test_headers(header):
    assert code(forge(GOOD, header)) == "bad_token"


def test_no_signature_is_no_token():
    head, body, signature = forge(GOOD).split(".")
    unsigned = b64(b'{"alg":"none"}')
    other = b64(hmac.digest(b"x" * 32, f"{head}.{body}".encode(), hashlib.sha256))
    for token in (f"{unsigned}.{body}.", f"{head}.{body}.", f"{head}.{body}", f"{head}.{body}.{other}",
                  f"{unsigned}.{body}.{signature}", "", ".", "..", "a.b.c", "é.é.é", "\ud800"):  # fmt: skip
        assert code(token) == "bad_token"


def test_a_token_has_a_largest_size():
    padding = MAX_TOKEN - len(forge(GOOD | {"x": ""}))
    fits = forge(GOOD | {"x": "x" * (padding * 3 // 4 - 4)})
    assert len(fits) <= MAX_TOKEN
    assert verifier().verify(fits).user == "alice"
    assert code(forge(GOOD | {"x": "x" * padding})) == "bad_token"


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"aud": "chat", "iss": "me"}, True),
        ({"aud": ["web", "chat"], "iss": "me"}, True),
        ({"aud": "other", "iss": "me"}, False),
        ({"aud": ["chat", 5], "iss": "me"}, False),
        ({"aud": [], "iss": "me"}, False),
        ({"iss": "me"}, False),
        ({"aud": "chat"}, False),
        ({"aud": "chat", "iss": "you"}, False),
        ({"aud": "chat", "iss": ["me"]}, False),
    ],
)
def test_audience_and_issuer_match_the_settings(claims, good):
    checker = verifier(jwt_audience="chat", jwt_issuer="me")
    if good:
        assert checker.verify(forge(GOOD | claims)).user == "alice"
    else:
        assert code(forge(GOOD | claims), checker) == "bad_token"


def pem(path: Path, key: Any) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.fixture(scope="module")
def rsa():
    return generate_private_key(65537, 2048)


def test_an_external_key_is_the_only_one(tmp_path, rsa):
    for algorithm, key in (("RS256", rsa), ("EdDSA", Ed25519PrivateKey.generate())):
        path = pem(tmp_path / f"{algorithm}.pem", key)
        checker = verifier(jwt_algorithm=algorithm, jwt_public_key=path)
        assert checker.verify(jwt.encode(GOOD, key, algorithm)).user == "alice"
        assert code(jwt.encode(GOOD | {"exp": 5}, key, algorithm), checker) == "token_expired"
        assert code(forge(GOOD), checker) == "bad_token"
        # algorithm confusion: the public key, which anybody has, used as an HMAC secret
        assert code(forge(GOOD, key=path.read_bytes()), checker) == "bad_token"


def test_registration_beside_an_external_key_makes_tokens_that_hold(tmp_path):
    key = Ed25519PrivateKey.generate()
    settings = Settings(jwt_algorithm="EdDSA", jwt_public_key=pem(tmp_path / "k.pem", key), registration=True)
    checker = TokenVerifier(settings, SECRET, lambda: NOW)
    assert checker.verify(TokenSigner(settings, SECRET, lambda: NOW).sign("alice", 60)[0]).user == "alice"
    assert checker.verify(jwt.encode(GOOD, key, "EdDSA")).user == "alice"
    assert code(forge(GOOD, key=(tmp_path / "k.pem").read_bytes()), checker) == "bad_token"


def test_keys_that_do_not_fit_are_refused_at_the_start(tmp_path, rsa):
    private = tmp_path / "private.pem"
    private.write_bytes(rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    cases = [
        ("RS256", private, "a private key"),
        ("RS256", nonsense, "no PEM public key for RS256"),
        ("RS256", tmp_path / "gone.pem", "No such file"),
        ("EdDSA", pem(tmp_path / "rsa.pem", rsa), "no PEM public key for EdDSA"),
        ("RS256", pem(tmp_path / "ed.pem", Ed25519PrivateKey.generate()), "no PEM public key for RS256"),
        ("RS256", pem(tmp_path / "small.pem", generate_private_key(65537, 1024)), "2048 at least"),
    ]
    for algorithm, path, text in cases:
        with pytest.raises(ConfigError, match=text):
            verifier(jwt_algorithm=algorithm, jwt_public_key=path)
