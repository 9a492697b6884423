"""The engine of several: it owns the data directory, and gateways reach it over a Unix socket."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from hongyan import __version__
from hongyan.app.core import Core, calm_collector, print_hints
from hongyan.app.supervisor import say_up, when_told
from hongyan.config import Settings
from hongyan.descriptors import Share
from hongyan.ids import lane
from hongyan.link.listener import LinkListener
from hongyan.link.router import Router
from hongyan.metrics import Counters
from hongyan.stopping import Stop

log = structlog.get_logger("hongyan")


async def serve(settings: Settings, room: Share, path: Path, lifeline: socket.socket) -> int:
    """Until `lifeline` ends: then until the gateways have gone, and what they handed over is stored. Returns the exit
    code. Raises DataDirectoryError, OSError."""
    stop = asyncio.Event()
    stopping = Stop(settings.shutdown_timeout_s, stop.set)
    when_told(lifeline, stopping.begin)
    everyone = False  # all gateways have listened; from then on one is enough
    router: Router | None = None

    def listening() -> None:
        nonlocal everyone
        if router is not None and router.listening >= settings.workers and not everyone:
            everyone = True
            print_hints(settings, settings.port)

    def ready() -> bool:
        return everyone and router is not None and router.listening > 0

    async def total(own: Counters) -> Counters:
        return await router.total() if router is not None else own

    async with AsyncExitStack() as stack:
        sequences = lane(-1, settings.workers)
        core = await Core.open(stack, settings, room, stop, stopping, ready, sequences, total)
        if core is None:
            return 0
        router = Router(core.engine, core.secret, core.counters, listening)
        core.engine.start(router)
        stack.push_async_callback(core.engine.close)
        listener = LinkListener(path, router)
        await listener.start()
        stack.push_async_callback(lambda: listener.close(stopping.left(0.7)))
        calm_collector()
        say_up(lifeline)
        log.info("the engine is ready", http_port=core.http_port, data_dir=str(settings.data_dir),
                 version=__version__)  # fmt: skip
        await stop.wait()
        log.info("stopping")
    log.info("stopped")
    return 0
