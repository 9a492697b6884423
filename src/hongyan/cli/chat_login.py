"""Where `hongyan chat` has its token from: the command line, the server's directory beside it, a password."""

from __future__ import annotations

import getpass
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import click
import jwt
import msgspec
from click.core import ParameterSource

from hongyan.client.connection import TokenProvider
from hongyan.config import load

TOKEN_TTL_S = 86_400


class Login:
    """`data_dir`: the server's directory, whether or not it is there. `config`: the server's TOML file.

    Settings are read only where they matter: with a token given, or without a server's directory, whatever
    HONGYAN_* the environment holds is none of our business.
    """

    def __init__(
        self, user: str, token: str | None, data_dir: str | None, config: Path | None, http_url: str
    ) -> None:
        """Raises ConfigError."""
        self._user = user
        self._token = token
        self._http_url = http_url
        self.data_dir = Path(data_dir or "hongyan-data")
        self._settings = None
        if config is not None or (not token and self._secret.exists()):
            self._settings = load({"data_dir": data_dir} if data_dir else {}, config)
            self.data_dir = self._settings.data_dir
        self._advice = ""

    @property
    def _secret(self) -> Path:
        return self.data_dir / "secret"

    def provider(self) -> str | TokenProvider:
        """The given token; beside a server, tokens of our own; else one for a password, asked for once.
        Raises click's exceptions, ConfigError, DataDirectoryError, OSError."""
        if self._token:
            self._advice = f"a new one is made beside the server: hongyan token {self._user}"
            return _given(self._user, self._token)
        if self._secret.exists():
            self._advice = (
                f"the token was made with {self._secret}: name the server's own --data-dir, and its --config "
                "where that sets an audience or issuer"
            )
            return self._own_tokens()
        if not at_terminal():
            raise click.UsageError(
                f"no token: there is no {self._secret} (start the server there, or name its --data-dir), "
                "and neither --token nor HONGYAN_TOKEN is given"
            )
        self._advice = "start again and give the password"
        return _by_password(self._http_url, self._user, getpass.getpass(f"Password of {self._user}: "))

    def advice(self, code: str) -> str:
        """What to do about a login that the server refused with `code`; "" where the token is not at fault."""
        return f"; {self._advice}" if code in ("bad_token", "token_expired") else ""

    def _own_tokens(self) -> Callable[[], str]:
        from hongyan.cli.token import own_signer

        assert self._settings is not None
        signer = own_signer(self._settings)
        token, renew_at = "", 0.0

        def current() -> str:
            # The same one for half its life: one that the server refuses is not tried again under a new date.
            nonlocal token, renew_at
            if time.time() >= renew_at:
                token, renew_at = signer.sign(self._user, TOKEN_TTL_S)[0], time.time() + TOKEN_TTL_S / 2
            return token

        return current


def at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _given(user: str, token: str) -> str:
    """`token`, which must be `user`'s: with another's, what is typed would be said in that one's name."""
    source = click.get_current_context().get_parameter_source("token")
    name = "HONGYAN_TOKEN" if source is ParameterSource.ENVIRONMENT else "--token"
    try:
        whose = jwt.decode(token, options={"verify_signature": False}).get("sub")
    except jwt.PyJWTError:
        raise click.UsageError(f"{name} is no JWT") from None
    if whose != user:
        raise click.UsageError(f"{name} is a token of {whose!r}, not of {user!r}")
    return token


def _by_password(http_url: str, user: str, password: str) -> str:
    """A token from `POST /api/v1/auth/login`. Raises ClickException."""
    body = msgspec.json.encode({"user_id": user, "password": password})
    request = urllib.request.Request(
        f"{http_url.rstrip('/')}/api/v1/auth/login", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return str(msgspec.json.decode(answer.read())["token"])
    except urllib.error.HTTPError as error:
        raise click.ClickException(f"login refused: {_problem(error)}") from None
    except urllib.error.URLError as error:
        raise click.ClickException(f"cannot reach {http_url}: {error.reason}") from None


def _problem(error: urllib.error.HTTPError) -> str:
    """What the server said (RFC 9457), or the status where it was none of ours."""
    with error:
        body = error.read(65536)
    try:
        found = msgspec.json.decode(body)
        return f"{found['code']} ({found['detail']})"
    except (msgspec.DecodeError, TypeError, KeyError):
        return f"{error.url} answered HTTP {error.code}"
