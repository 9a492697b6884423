"""`hongyan bench`: put a server under load, and check all that comes back."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import jwt

from hongyan.bench import result as results
from hongyan.bench.plan import CONNECTIONS_A_PROCESS, LOOPBACK, Plan
from hongyan.bench.report import report
from hongyan.bench.run import Run, RunFailed
from hongyan.bench.server import ServerProcess, of_data_directory
from hongyan.bench.table import comparison, table
from hongyan.cli.faults import wrong_settings_named
from hongyan.cli.token import own_signer
from hongyan.config import load
from hongyan.errors import DataDirectoryError

_TOKEN_TTL_S = 86_400
_FAILED, _INTERRUPTED = 1, 130

_COMMON: list[Callable[[Any], Any]] = [
    click.option("--url", default="ws://127.0.0.1:8080/ws", show_default=True, metavar="URL", help="The server."),
    click.option(
        "--data-dir", metavar="DIR", default="hongyan-data", show_default=True, type=click.Path(path_type=Path),
        help="The server's data directory: tokens are made with its secret, and its LOCK names the process.",
    ),
    click.option(
        "--config", metavar="FILE", type=click.Path(path_type=Path),
        help="The server's TOML file, where that sets an audience or issuer.",
    ),
    click.option(
        "--tokens", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Tokens, one a line and user, instead of making them.",
    ),
    click.option(
        "--server-pid", type=click.IntRange(1), metavar="PID",
        help="The server's process, for its CPU and memory.  [default: from the data directory]",
    ),
    click.option("--processes", type=click.IntRange(1, 200), help="Of the load generator.  [default: as needed]"),
    click.option("--size", type=click.IntRange(1, 60_000), default=50, show_default=True, help="Characters of a message."),
    click.option("--seed", type=int, default=1, show_default=True, help="Of what is random."),
    click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the result here."),
    click.option("--html", "html_file", metavar="FILE", type=click.Path(path_type=Path), help="Write a report with plots here."),
    click.option(
        "--compare", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="An earlier --json to compare with.",
    ),
]  # fmt: skip


def _connections(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--connections", "-n", type=click.IntRange(2), default=default, show_default=True, help="Users, one connection each."
    )  # fmt: skip


def _time(default: float) -> Callable[[Any], Any]:
    def both(command: Any) -> Any:
        command = click.option(
            "--warmup", "warmup_s", type=click.FloatRange(0), default=1.0, show_default=True, metavar="S",
            help="Seconds before anything is measured.",
        )(command)  # fmt: skip
        return click.option(
            "--duration", "-d", "duration_s", type=click.FloatRange(0.2), default=default, show_default=True, metavar="S",
            help="Seconds that are measured.",
        )(command)  # fmt: skip

    return both


_in_flight = click.option(
    "--in-flight", "-w", type=click.IntRange(1), default=1, show_default=True,
    help="Messages of a sender that await their acknowledgement.",
)  # fmt: skip
_rate = click.option(
    "--rate", "-r", type=click.FloatRange(0, min_open=True), default=None, metavar="N",
    help="Messages a second in all, whatever the answers; latency counts from when each was due.",
)  # fmt: skip


@click.group()
def bench() -> None:
    """Put a server under load. Every acknowledged message must come once and in order, or the run fails (exit 1).

    Start the server without a rate limit: hongyan serve --rate-limit 0.

    \b
    Examples:
      hongyan bench direct --connections 1000
      hongyan bench direct --connections 1000 --rate 10000 --html report.html
      hongyan bench group --members 1000 --connections 1000
      hongyan bench connect --connections 5000
    """


def _command(name: str, *options: Callable[[Any], Any]) -> Callable[[Callable[..., None]], click.Command]:
    def make(function: Callable[..., None]) -> click.Command:
        command: Any = function
        for option in reversed([*options, *_COMMON]):
            command = option(command)
        return bench.command(name)(command)

    return make


@_command("direct", _connections(100), _time(10), _in_flight, _rate)
def direct(**flags: Any) -> None:
    """Messages between random pairs of users."""
    _run("direct", flags)


@_command(
    "group", _connections(100), _time(10), _in_flight, _rate,
    click.option("--members", type=click.IntRange(2), default=100, show_default=True, help="Of each group."),
)  # fmt: skip
def group(**flags: Any) -> None:
    """Fan-out: the first member of each group talks, all others listen."""
    if flags["connections"] % flags["members"]:
        raise click.BadParameter(
            f"{flags['connections']} connections are no whole number of groups of {flags['members']}",
            param_hint="--members",
        )
    _run("group", flags)


@_command(
    "connect", _connections(1000),
    click.option(
        "--at-a-time", "in_flight", type=click.IntRange(1), default=100, show_default=True,
        help="Logins under way in each process.",
    ),
)  # fmt: skip
def connect(**flags: Any) -> None:
    """A storm of logins."""
    _run("connect", flags)


@_command("idle", _connections(1000), _time(10))
def idle(**flags: Any) -> None:
    """Hold connections with their heartbeats; shows the memory of one."""
    _run("idle", flags)


@_command(
    "offline", _connections(100), _in_flight,
    click.option("--messages", type=click.IntRange(1), default=100, show_default=True, help="To each who is away, on average."),
)  # fmt: skip
def offline(**flags: Any) -> None:
    """Every other user is away; then they come back and sync."""
    _run("offline", flags)


@_command("mixed", _connections(200), _time(20), _rate)
def mixed(**flags: Any) -> None:
    """A day of a chat application: direct chats, groups of all sizes, presence, people who come and go."""
    flags["rate"] = flags["rate"] or 2.0 * flags["connections"]
    _run("mixed", flags)


def _run(scenario: str, flags: dict[str, Any]) -> None:
    old = _old(flags.pop("compare"))
    url, size = flags["url"], flags["connections"]
    if urlsplit(url).scheme not in ("ws", "wss") or not urlsplit(url).hostname:
        raise click.BadParameter(f"{url!r} is no ws:// or wss:// URL", param_hint="--url")
    processes = flags.pop("processes") or max(1, -(-size // CONNECTIONS_A_PROCESS))
    if processes > size // 2:
        raise click.BadParameter(f"{processes} processes for {size} connections", param_hint="--processes")
    prefix = f"b{secrets.token_hex(3)}-"
    token_file, data_dir, config = flags.pop("tokens"), flags.pop("data_dir"), flags.pop("config")
    tokens, users = _tokens(token_file, data_dir, config, prefix, size)
    server = _server(flags.pop("server_pid"), data_dir, url)
    json_file, html_file = flags.pop("json_file"), flags.pop("html_file")
    plan_flags = {"duration_s": 0.0, "warmup_s": 0.0, **flags}
    plan_flags["rate"] = plan_flags.get("rate") or 0.0
    plan = Plan(
        scenario=scenario,
        prefix=prefix,
        users=users,
        first_ref=time.time_ns() // 1000 if users else 0,
        **plan_flags,
    )
    found = _measured(plan, processes, tokens, server)
    click.echo(table(found))
    if old is not None:
        click.echo("\n" + comparison(old, found))
    try:
        if json_file is not None:
            results.save(found, json_file)
        if html_file is not None:
            html_file.write_text(report(found, old), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(str(error)) from None
    if found.interrupted:
        sys.exit(_INTERRUPTED)
    if found.failures:
        sys.exit(_FAILED)


def _measured(plan: Plan, processes: int, tokens: list[str], server: ServerProcess | None) -> results.Result:
    """Run with a progress bar, where there is a terminal for it."""
    bar: AbstractContextManager[Any] = nullcontext()
    if sys.stderr.isatty() and plan.duration_s:
        bar = click.progressbar(length=max(1, round(plan.duration_s)), label=plan.scenario, file=sys.stderr)
    with bar as shown:
        seen = 0

        def progress(phase: str, second: int) -> None:
            nonlocal seen
            if shown is None:
                return
            shown.label = f"{plan.scenario}: {phase}"
            shown.update(max(0, second - seen))
            seen = max(seen, second)

        try:
            return Run(plan, processes, tokens, server, progress).run()
        except RunFailed as error:
            raise click.ClickException(str(error)) from None


def _old(path: Path | None) -> results.Result | None:
    try:
        return results.load(path) if path is not None else None
    except (OSError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--compare") from None


def _tokens(
    file: Path | None, data_dir: Path, config: Path | None, prefix: str, count: int
) -> tuple[list[str], list[str]]:
    """Tokens, and whose they are where they were given."""
    if file is not None:
        tokens = file.read_text().split()[:count]
        if len(tokens) < count:
            raise click.BadParameter(
                f"{file} has {len(tokens)} tokens for {count} connections", param_hint="--tokens"
            )
        try:
            users = [jwt.decode(token, options={"verify_signature": False})["sub"] for token in tokens]
        except (jwt.PyJWTError, KeyError):
            raise click.BadParameter(
                f"{file} has a line that is no JWT with a sub", param_hint="--tokens"
            ) from None
        return tokens, users
    if not (data_dir / "secret").exists():
        raise click.UsageError(
            f"there is no {data_dir}/secret: name the server's own --data-dir, or give --tokens FILE"
        )
    try:
        with wrong_settings_named("bench"):
            signer = own_signer(load({"data_dir": str(data_dir)}, config))
    except (DataDirectoryError, OSError) as error:
        raise click.ClickException(str(error)) from None
    return [signer.sign(f"{prefix}{n}", _TOKEN_TTL_S)[0] for n in range(count)], []


def _server(pid: int | None, data_dir: Path, url: str) -> ServerProcess | None:
    if pid is None and urlsplit(url).hostname in LOOPBACK:
        pid = of_data_directory(data_dir)
    try:
        return ServerProcess(pid) if pid is not None else None
    except ProcessLookupError as error:
        raise click.BadParameter(str(error), param_hint="--server-pid") from None
