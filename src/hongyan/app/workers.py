"""`workers = N`: a supervisor (this process), one engine and N gateways that share the port."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
import uvloop

from hongyan.accept import listen
from hongyan.app import engine_process, gateway_process
from hongyan.app.supervisor import Supervisor
from hongyan.auth import TokenVerifier
from hongyan.config import Settings
from hongyan.descriptors import engine_share, gateway_share, raise_limit
from hongyan.errors import DataDirectoryError
from hongyan.ids import lane
from hongyan.link.listener import NAME, fits
from hongyan.log import speak_as

ENGINE = "engine"

log = structlog.get_logger("hongyan")


def run(settings: Settings) -> int:
    """Returns the exit code. Raises ConfigError, and OSError where a port is taken."""
    limit = raise_limit()
    store = engine_share(limit)
    ours = share_of(settings)
    connections = gateway_share(limit, ours.max_connections)
    TokenVerifier(settings, b"")  # a wrong public key is said now
    settings, ours, reserved = _reserve(settings, ours)
    path, temporary = _link_path(settings)

    def engine(lifeline: socket.socket) -> int:
        return _child(ENGINE, reserved, engine_process.serve(settings, store, path, lifeline))

    def gateway(slot: int, number: int, lifeline: socket.socket) -> int:
        sequences = lane(slot, settings.workers)
        serving = gateway_process.serve(ours, connections, number, sequences, path, lifeline)
        return _child(f"gateway-{slot + 1}", reserved, serving)

    try:
        return Supervisor(engine, gateway, settings.workers, settings.shutdown_timeout_s).run()
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def share_of(settings: Settings) -> Settings:
    """One gateway's: what bounds a machine is divided, and the kernel spreads connections evenly, also those of one
    address. Rounded up, so that nothing becomes zero."""
    names = (
        "max_connections", "max_outbound_bytes", "max_unauthenticated", "max_unauthenticated_per_address",
        "failed_logins_per_minute",
    )  # fmt: skip
    return settings.model_copy(
        update={name: math.ceil(getattr(settings, name) / settings.workers) for name in names}
    )


def _reserve(settings: Settings, ours: Settings) -> tuple[Settings, Settings, list[socket.socket]]:
    """Ports that nobody else gets while a process of ours is restarted; a port 0 becomes a real one. Raises OSError
    where one is taken."""
    probe = listen(
        settings.host, settings.port, "WebSockets"
    )  # what shares a port would not notice another server
    port = probe[0].getsockname()[1]
    for each in probe:
        each.close()
    try:
        reserved = listen(settings.host, port, "WebSockets", shared=True, reuse=False)
    except OSError:  # of a single process that ran here a moment ago, something is left
        reserved = listen(settings.host, port, "WebSockets", shared=True)
    http = listen(settings.host, settings.http_port, "HTTP")
    ports = {"port": port, "http_port": http[0].getsockname()[1]}
    return settings.model_copy(update=ports), ours.model_copy(update=ports), reserved + http


def _link_path(settings: Settings) -> tuple[Path, str | None]:
    """Where the engine listens for gateways, and the temporary directory made for it, if any."""
    path = settings.data_dir.absolute() / NAME
    if fits(path):
        return path, None
    temporary = tempfile.mkdtemp(prefix="hongyan-")
    return Path(temporary) / NAME, temporary


def _child(name: str, reserved: list[socket.socket], serving: Coroutine[Any, Any, int]) -> int:
    """In a process just forked."""
    speak_as(name)
    with suppress(OSError):  # for `ps` and `top`; 15 characters, where there is such a file
        Path("/proc/self/comm").write_text(f"hongyan-{name.replace('gateway', 'gw')}")
    for each in reserved:
        each.close()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's goes to all: the supervisor says who ends when
    if name == ENGINE:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager's, likewise
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        return uvloop.run(serving)
    except DataDirectoryError as error:
        print(f"hongyan: {error}", file=sys.stderr)
    except OSError as error:
        print(f"hongyan: cannot start: {error}", file=sys.stderr)
    return os.EX_SOFTWARE if name != ENGINE else 1
