"""Tokens: JWTs (RFC 7519) checked against the settings, never against what their header asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from hongyan.config import ConfigError, Settings
from hongyan.errors import refused
from hongyan.protocol.names import is_id, is_reserved

LEEWAY_S = 30
MAX_TOKEN = 8192  # characters
_MIN_RSA_BITS = 2048  # RFC 7518 §3.3
_LATEST_S = 2**40  # a later `exp` counts as this one: it must fit the clocks it is compared with
# PyJWT checks the signature, `alg` and `crit`; the claims are checked here, by one clock and one rule.
_SIGNATURE_ONLY: Any = {
    "verify_signature": True, "verify_exp": False, "verify_nbf": False, "verify_iat": False,
    "verify_aud": False, "verify_iss": False, "verify_sub": False, "verify_jti": False,
}  # fmt: skip


class Claims(NamedTuple):
    """Who a token names, and its `exp` in ms since the epoch, without the leeway: a connection ends at
    `exp`, or, where the token was taken within the leeway, when that ends."""

    user: str
    expires_at_ms: int


class _Bad(Exception):
    """Not to be trusted."""


class _Expired(Exception):
    """Genuine, and over."""


class TokenVerifier:
    """HS256 with the data directory's secret, or RS256/EdDSA with the configured public key. Where
    registration is on beside such a key, the server's own HS256 tokens hold too. Each key goes with
    the one algorithm of the settings; `now` in seconds since the epoch."""

    def __init__(self, settings: Settings, secret: bytes, now: Callable[[], float] = time.time) -> None:
        """Raises ConfigError: the public key cannot be read or does not fit the algorithm."""
        self._keys: list[tuple[str, Any]] = []
        if settings.jwt_public_key is not None:
            self._keys.append((settings.jwt_algorithm, _public_key(settings)))
        if settings.jwt_public_key is None or settings.registration_on:
            self._keys.append(("HS256", secret))
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        self._now = now

    def verify(self, token: str) -> Claims:
        """Raises Refused `bad_token` or `token_expired` (genuine but for its time). The text never
        says more, and no part of a token is in it."""
        try:
            if len(token) > MAX_TOKEN:
                raise _Bad
            return self._check(self._payload(token), self._now())
        except _Expired:
            raise refused("token_expired", "the token has expired") from None
        except Exception:  # whatever a forged token makes the library raise, it is a bad token
            raise refused("bad_token", "the token does not verify") from None

    def _payload(self, token: str) -> Mapping[str, Any]:
        for algorithm, key in self._keys:
            try:
                found = jwt.decode_complete(token, key, algorithms=[algorithm], options=_SIGNATURE_ONLY)
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                continue
            if "crit" in found["header"]:  # RFC 7515 §4.1.11; the library knows one extension, we none
                raise _Bad
            claims: Mapping[str, Any] = found["payload"]
            return claims
        raise _Bad

    def _check(self, claims: Mapping[str, Any], now: float) -> Claims:
        user, expires = claims.get("sub"), _date(claims.get("exp"))
        if not isinstance(user, str) or not is_id(user) or is_reserved(user):
            raise _Bad
        if "nbf" in claims and _date(claims["nbf"]) > now + LEEWAY_S:
            raise _Bad
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise _Bad
        if self._audience is None:
            # RFC 7519 §4.1.3: who does not identify with an audience refuses a token that has one.
            if "aud" in claims:
                raise _Bad
        elif self._audience not in _audiences(claims.get("aud")):
            raise _Bad
        if expires + LEEWAY_S <= now:
            raise _Expired
        return Claims(user, int(min(expires, _LATEST_S) * 1000))


class TokenSigner:
    """HS256 with the data directory's secret. `now` in seconds since the epoch."""

    def __init__(self, settings: Settings, secret: bytes, now: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._now = now
        self._extra: dict[str, str] = {}
        if settings.jwt_audience is not None:
            self._extra["aud"] = settings.jwt_audience
        if settings.jwt_issuer is not None:
            self._extra["iss"] = settings.jwt_issuer

    def sign(self, user: str, ttl_s: int) -> tuple[str, int]:
        """A token for `user`, and when it expires (ms since the epoch)."""
        expires = int(self._now()) + ttl_s
        claims = {"sub": user, "exp": expires, **self._extra}
        return jwt.encode(claims, self._secret, algorithm="HS256"), expires * 1000


def _date(value: object) -> float:
    """A NumericDate (RFC 7519 §2), seconds since the epoch; it may have a fraction. An int that no
    double holds raises OverflowError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Bad
    date = float(value)
    if not math.isfinite(date):
        raise _Bad
    return date


def _audiences(value: object) -> list[str]:
    """`aud`: one string or an array of strings."""
    names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
    if isinstance(value, list) and len(names) < len(value):
        raise _Bad
    return names


def _public_key(settings: Settings) -> Any:
    path, algorithm = settings.jwt_public_key, settings.jwt_algorithm
    assert path is not None
    try:
        key = jwt.get_algorithm_by_name(algorithm).prepare_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"jwt_public_key: {path}: {error.strerror}") from None
    except Exception:  # cryptography and PyJWT have a dozen ways to say so
        raise ConfigError(f"jwt_public_key: {path}: no PEM public key for {algorithm}") from None
    if not hasattr(key, "verify") or hasattr(key, "sign"):
        raise ConfigError(f"jwt_public_key: {path}: a private key; the server needs only the public one")
    if isinstance(key, RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise ConfigError(
            f"jwt_public_key: {path}: an RSA key of {key.key_size} bits; {_MIN_RSA_BITS} at least"
        )
    return key
