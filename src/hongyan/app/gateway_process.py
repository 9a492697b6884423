"""One gateway of several: it shares the port with the others and asks an engine in another process."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import structlog

from hongyan.address import in_url
from hongyan.app.core import calm_collector, now_ms
from hongyan.app.supervisor import say_up, when_told
from hongyan.auth import TokenVerifier
from hongyan.config import Settings
from hongyan.gateway.server import Gateway
from hongyan.ids import Snowflake
from hongyan.link.remote import RemoteEngine
from hongyan.link.router import SESSION_BITS
from hongyan.link.uplink import Uplink
from hongyan.metrics import Counters, figures
from hongyan.stopping import Stop

log = structlog.get_logger("hongyan")


async def serve(
    settings: Settings,
    max_connections: int,
    number: int,
    sequences: range,
    path: Path,
    lifeline: socket.socket,
) -> int:
    """Until `lifeline` ends, or SIGTERM. `number`: of this process, and never of another one. Returns the exit code.
    Raises OSError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    stopping = Stop(settings.shutdown_timeout_s, stop.set)
    loop.add_signal_handler(signal.SIGTERM, stopping.on_signal, signal.SIGTERM)
    when_told(lifeline, stopping.begin)
    counters = Counters(max_connections=max_connections)
    link = Uplink(path, number, time.monotonic, lambda: figures(counters))
    linking = loop.create_task(link.start(), name="first link")
    stopped = loop.create_task(stop.wait())
    await asyncio.wait({linking, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        linking.cancel()
        await link.close(0.0)
        return 0
    gateway = Gateway(
        settings, RemoteEngine(link), TokenVerifier(settings, linking.result()),
        Snowflake(settings.node_id, now_ms, sequences=sequences),
        counters, now_ms, time.monotonic, max_connections=max_connections,
        first_session=(number << SESSION_BITS) + 1,
    )  # fmt: skip
    link.gateway = gateway
    await gateway.start()
    link.listening()
    calm_collector()
    say_up(lifeline)
    log.info(
        "listening", url=f"ws://{in_url(settings.host)}:{gateway.port}/ws", max_connections=max_connections
    )
    await stop.wait()
    await gateway.drain(stopping.left(0.6))
    await link.close(stopping.left(0.1))
    return 0
