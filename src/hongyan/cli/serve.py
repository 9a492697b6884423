"""`hongyan serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hongyan.cli.faults import wrong_settings_named
from hongyan.config import load


@click.command()
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port of the WebSocket gateway; 0: a free one.  [default: 8080]")
@click.option("--http-port", type=int, help="Port of accounts, health, metrics.  [default: 8081]")
@click.option(
    "--data-dir", metavar="DIR",
    help="Where messages are kept.  [default: hongyan-data]",
)  # fmt: skip
@click.option(
    "--workers", metavar="N",
    help="Gateway processes; from 2 on there is an engine process too. auto: one a core.  [default: 1]",
)  # fmt: skip
@click.option("--rate-limit", type=int, help="Requests a second a connection; 0: no limit.  [default: 100]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [default: info]")
@click.option(
    "--log-format", metavar="FORMAT",
    help="console, json, or auto: console on a terminal, else json.  [default: auto]",
)  # fmt: skip
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path),
    help="Settings as TOML; docs/hongyan.example.toml has them all.",
)  # fmt: skip
def serve(config: Path | None, **flags: Any) -> None:
    """Start the server. Ctrl-C or SIGTERM stops it gently.

    Settings come from these flags, else from HONGYAN_* in the environment (HONGYAN_PORT=9000), else from
    the --config file, else from the defaults. A wrong one is named with its source, and the exit code is 2.

    \b
    Examples:
      hongyan serve
      hongyan serve --port 9000 --http-port 9001 --data-dir /var/lib/hongyan
      hongyan serve --workers auto
      hongyan serve --config hongyan.toml --log-format json
    """
    with wrong_settings_named("serve"):
        settings = load({name: value for name, value in flags.items() if value is not None}, config)
        from hongyan.app import run  # after the settings: a wrong flag is answered at once

        sys.exit(run(settings))
