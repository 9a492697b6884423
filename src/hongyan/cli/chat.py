"""`hongyan chat`: the test client, for people at a terminal and for scripts."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click

from hongyan.cli.chat_login import Login, at_terminal
from hongyan.cli.chat_script import Script
from hongyan.cli.faults import wrong_settings_named
from hongyan.client import ClientError, LoginRefused
from hongyan.errors import DataDirectoryError
from hongyan.protocol.names import is_group_address, is_id, is_reserved, is_user_address


def _user(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if not is_id(value) or is_reserved(value):
        raise click.BadParameter(f"{value!r} is no user id: 1 to 64 of A-Za-z0-9_.-")
    return value


def _address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (is_user_address(value) or is_group_address(value)):
        raise click.BadParameter(f"{value!r} is no address: @user or #group")
    return value


def _url(*schemes: str) -> Callable[[click.Context, click.Parameter, str], str]:
    def check(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
        try:
            parts = urlsplit(value)
            sound = parts.scheme in schemes and parts.hostname and parts.port != 0
        except ValueError:  # a port that is none
            sound = False
        if not sound:
            raise click.BadParameter(f"{value!r} is no address such as {parameter.get_default(ctx)}")
        return value

    return check


@click.command()
@click.option("--user", required=True, callback=_user, help="Who you are.")
@click.option("--to", callback=_address, help="Whom to talk to: @user or #group. In a script each line then goes "
              "there as it is; without --to each line begins with its address.")  # fmt: skip
@click.option("--url", default="ws://127.0.0.1:8080/ws", show_default=True, callback=_url("ws", "wss"),
              help="The server's gateway.")  # fmt: skip
@click.option(
    "--http-url",
    default="http://127.0.0.1:8081",
    show_default=True,
    callback=_url("http", "https"),
    help="For a password login.",
)
@click.option("--device", default=None, help="Device id. A second login with it ends the first. [default: a name "
              "kept for this user and server, another one in scripts]")  # fmt: skip
@click.option(
    "--data-dir",
    metavar="DIR",
    envvar="HONGYAN_DATA_DIR",
    help="The server's directory; where it is, no token is needed.  [default: hongyan-data]",
)
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path),
    help="The server's TOML file, for its audience, issuer and data directory.",
)  # fmt: skip
@click.option("--token", envvar="HONGYAN_TOKEN", show_envvar=True, help="A JWT for this user.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for messages, acks and errors.")
@click.option("--listen", is_flag=True, help="Stay after the end of standard input, until interrupted.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Stay that long after it.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Leave once N messages have come and standard input is at its end (or a terminal).",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              metavar="SECONDS", help="How long to try to reach the server (scripts).")  # fmt: skip
def chat(
    user: str, to: str | None, url: str, http_url: str, device: str | None, data_dir: str | None,
    config: Path | None, token: str | None, as_json: bool, listen: bool, wait: float | None,
    count: int | None, timeout: float,
) -> None:  # fmt: skip
    """Chat as USER, at a terminal or from standard input (one line, one message).

    At a terminal /help shows what can be typed; a line that begins with an address (@bob hello) goes
    there, and so does what follows it. With --json, --listen, --wait or --count it is a script's there too.

    \b
    Examples:
      hongyan chat --user alice --to @bob
      echo "the backup is done" | hongyan chat --user alice --to @bob
      printf '%s\\n' "@bob hello" "#team hello all" | hongyan chat --user alice
      hongyan chat --user bob --count 1 --json < /dev/null
    """
    if device is not None and not is_id(device):
        raise click.BadParameter(
            f"{device!r} is no device id: 1 to 64 of A-Za-z0-9_.-", param_hint="--device"
        )
    as_script = as_json or listen or wait is not None or count is not None
    interactive = at_terminal() and sys.stdout is not None and sys.stdout.isatty() and not as_script
    if interactive:  # as Ctrl-C does: through every `finally` that puts the terminal right, a password's too
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
    try:
        with wrong_settings_named("chat"):
            login = Login(user, token, data_dir, config, http_url)
            provider = login.provider()
        device = device or _default_device(user, login.data_dir, url, interactive=interactive)
        if interactive:
            from hongyan.cli.chat_prompt import Prompt

            code = asyncio.run(Prompt(url, provider, device, to).run())
        else:
            code = asyncio.run(Script(url, provider, device, to, as_json, listen, wait, count, timeout).run())
    except LoginRefused as error:
        raise click.ClickException(f"{error}{login.advice(error.error)}") from None
    except (ClientError, DataDirectoryError, OSError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        code = 0
    sys.exit(code)


def _default_device(user: str, data_dir: Path, url: str, *, interactive: bool) -> str:
    """The same at every start, so that what was missed arrives: by user and server on this machine. A script
    has one of its own: a login with the terminal's would end the chat that is open there."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        machine = _machine(state / "hongyan" / "device")
    except (OSError, RuntimeError):  # a read-only home, or none: the directory and address alone must do
        machine = ""
    place = f"{machine}|{data_dir.resolve()}|{url}|{user}" + ("" if interactive else "|script")
    return "cli-" + hashlib.sha256(place.encode()).hexdigest()[:16]


def _machine(file: Path) -> str:
    """A name for this machine, made at the first call; of two first calls at once both get the same."""
    if not (found := _text(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"device-{secrets.token_hex(8)}")
        fresh.write_text(fresh.name)
        try:
            os.link(fresh, file)  # whole or not at all
        except FileExistsError:
            if not _text(file):  # left empty by a full disk
                fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
        found = _text(file)
    return found


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8", "backslashreplace").strip()
    except FileNotFoundError:
        return ""
