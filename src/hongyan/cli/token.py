"""`hongyan token`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from hongyan.auth import TokenSigner
from hongyan.cli.faults import wrong_settings_named
from hongyan.config import ConfigError, Settings, load
from hongyan.datadir import read_secret
from hongyan.errors import DataDirectoryError
from hongyan.protocol.names import is_id, is_reserved

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 100 * 366 * 86_400


def _seconds(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([smhd])", value, re.ASCII)
    seconds = int(found[1]) * _UNITS[found[2]] if found is not None else 0
    if not 0 < seconds <= _LONGEST_S:
        raise click.BadParameter(f"{value!r} is no time such as 30s, 15m, 24h or 7d (100 years at most)")
    return seconds


def _ids(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for user in value:
        if is_reserved(user):
            raise click.BadParameter(f"{user!r}: ids that start with hongyan. are the server's")
        if not is_id(user):
            hint = f"; write {user[1:]}" if user.startswith("@") and is_id(user[1:]) else ""
            raise click.BadParameter(f"{user!r} is no user id: 1 to 64 of A-Za-z0-9_.-{hint}")
    return value


def own_signer(settings: Settings) -> TokenSigner:
    """For tokens that a server with these settings takes. Makes the data directory's secret if there is none.
    Raises ConfigError, DataDirectoryError, OSError."""
    if settings.jwt_public_key is not None and not settings.registration_on:
        raise ConfigError(
            "jwt_public_key: this server takes only tokens of whoever holds that key's private half"
        )
    return TokenSigner(settings, read_secret(settings.data_dir))


@click.command()
@click.argument("users", nargs=-1, required=True, metavar="USER...", callback=_ids)
@click.option(
    "--data-dir", metavar="DIR",
    help="The server's data directory.  [default: hongyan-data]",
)  # fmt: skip
@click.option(
    "--ttl", metavar="TIME", default="24h", show_default=True, callback=_seconds,
    help="How long it holds: 30s, 15m, 24h, 7d.",
)  # fmt: skip
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path),
    help="The server's TOML file, for its audience, issuer and data directory.",
)  # fmt: skip
def token(users: tuple[str, ...], data_dir: str | None, ttl: int, config: Path | None) -> None:
    """Print a token (JWT) for each USER, one a line, signed with the data directory's secret.

    Whoever can read that directory can log in as anybody. A user exists from the first login on.

    \b
    Examples:
      hongyan token alice
      hongyan token alice bob --ttl 7d --data-dir /var/lib/hongyan
    """
    try:
        with wrong_settings_named("token"):
            settings = load({} if data_dir is None else {"data_dir": data_dir}, config)
            new = not settings.data_dir.exists()
            signer = own_signer(settings)
        if new:  # right before the first start, else a slip of the pen
            click.echo(
                f"hongyan token: {settings.data_dir} is new: only a server started on it takes these tokens",
                err=True,
            )
    except (DataDirectoryError, OSError) as error:
        click.echo(f"hongyan token: {error}", err=True)
        raise SystemExit(1) from None
    for user in users:
        click.echo(signer.sign(user, ttl)[0])
