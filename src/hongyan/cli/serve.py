"""`hongyan serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hongyan.config import ConfigError, load


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port of the WebSocket gateway; 0 takes a free one.  [default: 8080]")
@click.option("--http-port", type=int, help="Port of HTTP: accounts, health, metrics.  [default: 8081]")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where messages are kept.  [default: hongyan-data]"
)
@click.option("--workers", type=int, help="Processes; this version has one.  [default: 1]")
@click.option(
    "--rate-limit", type=int, help="Requests a second a connection, 0 turns it off.  [default: 100]"
)
@click.option("--log-level", help="debug, info, warning or error.  [default: info]")
@click.option("--log-format", help="console, json, or auto: console on a terminal.  [default: auto]")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file; see docs/hongyan.example.toml.")
def serve(config: Path | None, **flags: Any) -> None:
    """Start the server. Ctrl-C or SIGTERM stops it gently.

    Settings: these flags, over HONGYAN_* in the environment (HONGYAN_PORT=9000), over --config, over the
    defaults.

    \b
    Examples:
      hongyan serve
      hongyan serve --port 9000 --http-port 9001 --data-dir /var/lib/hongyan
    """
    try:
        settings = load({name: value for name, value in flags.items() if value is not None}, config)
        if settings.workers != 1:
            raise ConfigError(f"--workers: this version runs in one process (got {settings.workers})")
        from hongyan.app import run  # after the settings: a wrong flag is answered at once

        sys.exit(run(settings))
    except ConfigError as error:
        print(f"hongyan serve: {error}", file=sys.stderr)
        sys.exit(2)
