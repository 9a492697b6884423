"""`hongyan token`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from hongyan.auth import TokenSigner
from hongyan.config import Settings
from hongyan.datadir import read_secret
from hongyan.errors import DataDirectoryError
from hongyan.protocol.names import is_id, is_reserved

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([smhd])", value)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no time such as 30s, 15m, 24h or 7d")
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("users", nargs=-1, required=True, metavar="USER...")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("hongyan-data"), show_default=True)
@click.option(
    "--ttl", default="24h", show_default=True, callback=_seconds, help="How long it holds: 30s, 15m, 24h, 7d."
)
def token(users: tuple[str, ...], data_dir: Path, ttl: int) -> None:
    """Print a token for each USER, one a line, signed with the data directory's secret.

    \b
    Example:
      hongyan token alice bob --ttl 7d
    """
    for user in users:
        if not is_id(user) or is_reserved(user):
            raise click.BadParameter(f"{user!r} is no user id: 1 to 64 of A-Za-z0-9_.-", param_hint="USER")
    try:
        signer = TokenSigner(Settings(), read_secret(data_dir))
    except (DataDirectoryError, OSError) as error:
        raise click.ClickException(str(error)) from None
    for user in users:
        click.echo(signer.sign(user, ttl)[0])
