"""How the commands say that a setting is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from hongyan.config import ConfigError

WRONG = 2  # the exit code of a wrong command line, and of a wrong setting from anywhere


@contextmanager
def wrong_settings_named(command: str) -> Iterator[None]:
    """Each wrong setting has a line with its source on standard error; then the command ends."""
    try:
        yield
    except ConfigError as error:
        for fault in str(error).splitlines():
            click.echo(f"hongyan {command}: {fault}", err=True)
        sys.exit(WRONG)
