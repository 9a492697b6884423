"""Tokens: JWTs (RFC 7519) checked against the settings, never against what their header asks for."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jwt

from hongyan.config import ConfigError, Settings
from hongyan.errors import refused
from hongyan.protocol.names import is_id, is_reserved

LEEWAY_S = 30
MAX_TOKEN = 8192


class Claims(NamedTuple):
    """Who a token names, and until when it holds (ms since the epoch, without the leeway)."""

    user: str
    expires_at_ms: int


class TokenVerifier:
    """HS256 with the data directory's secret, or RS256/EdDSA with the configured public key."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        self._algorithm = settings.jwt_algorithm
        self._key: Any = secret
        if settings.jwt_public_key is not None:
            try:
                self._key = settings.jwt_public_key.read_bytes()
                jwt.get_algorithm_by_name(self._algorithm).prepare_key(self._key)
            except OSError as error:
                raise ConfigError(f"jwt_public_key {settings.jwt_public_key}: {error.strerror}") from None
            except (ValueError, TypeError, jwt.InvalidKeyError):
                raise ConfigError(
                    f"jwt_public_key {settings.jwt_public_key}: no public key for {self._algorithm}"
                ) from None
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer

    def verify(self, token: str) -> Claims:
        """Raises Refused `bad_token` or `token_expired`; the text never says more."""
        if len(token) > MAX_TOKEN:
            raise refused("bad_token", "the token does not verify")
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[self._algorithm], audience=self._audience, issuer=self._issuer,
                leeway=LEEWAY_S, options={"require": ["exp", "sub"], "verify_iat": False},
            )  # fmt: skip
            user, expires = claims["sub"], claims["exp"]
            if isinstance(expires, bool) or not isinstance(expires, int | float):
                raise jwt.InvalidTokenError("exp is no number")
            # PyJWT passes an `aud` over where none was asked for; RFC 7519 §4.1.3 has it refused.
            if self._audience is None and claims.get("aud") is not None:
                raise jwt.InvalidAudienceError("aud")
            if not isinstance(user, str) or not is_id(user) or is_reserved(user):
                raise jwt.InvalidSubjectError("sub")
            return Claims(user, min(int(expires), 2**40) * 1000)
        except jwt.ExpiredSignatureError:
            raise refused("token_expired", "the token has expired") from None
        except Exception:  # whatever a forged token makes the library raise, it is a bad token
            raise refused("bad_token", "the token does not verify") from None


class TokenSigner:
    """HS256 with the data directory's secret."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        self._secret = secret
        self._extra: dict[str, str] = {}
        if settings.jwt_audience is not None:
            self._extra["aud"] = settings.jwt_audience
        if settings.jwt_issuer is not None:
            self._extra["iss"] = settings.jwt_issuer

    def sign(self, user: str, ttl_s: int) -> tuple[str, int]:
        """A token for `user`, and when it expires (ms since the epoch)."""
        expires = int(time.time()) + ttl_s
        claims = {"sub": user, "exp": expires, **self._extra}
        return jwt.encode(claims, self._secret, algorithm="HS256"), expires * 1000
