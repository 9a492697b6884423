"""`workers = 1`: gateway and engine in one process and one event loop."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import structlog
import uvloop

from hongyan import __version__
from hongyan.address import in_url
from hongyan.app.core import Core, calm_collector, now_ms, print_hints
from hongyan.auth import TokenVerifier
from hongyan.config import Settings
from hongyan.descriptors import Share, raise_limit, share
from hongyan.gateway.server import Gateway
from hongyan.ids import ALL_SEQUENCES
from hongyan.stopping import Stop

log = structlog.get_logger("hongyan")


def run(settings: Settings) -> int:
    """Returns the process's exit code. Raises ConfigError, DataDirectoryError, OSError."""
    room = share(raise_limit(), settings.max_connections)
    return uvloop.run(_serve(settings, room))


async def _serve(settings: Settings, room: Share) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    stopping = Stop(settings.shutdown_timeout_s, stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.on_signal, number)
    ready = False
    async with AsyncExitStack() as stack:
        core = await Core.open(stack, settings, room, stop, stopping, lambda: ready, ALL_SEQUENCES)
        if core is None:
            return 0
        gateway = Gateway(
            settings, core.engine, TokenVerifier(settings, core.secret), core.snowflake, core.counters, now_ms,
            time.monotonic, max_connections=room.connections,
        )  # fmt: skip
        core.engine.start(gateway)
        stack.push_async_callback(core.engine.close)
        await gateway.start()
        stack.push_async_callback(lambda: gateway.drain(stopping.left(0.6)))
        calm_collector()
        ready = True
        log.info("listening", url=f"ws://{in_url(settings.host)}:{gateway.port}/ws", http_port=core.http_port,
                 data_dir=str(settings.data_dir), max_connections=room.connections,
                 version=__version__)  # fmt: skip
        print_hints(settings, gateway.port)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")
    return 0
