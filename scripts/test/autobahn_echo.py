"""An echo server on the gateway's own frame layer, for the Autobahn suite: `autobahn_echo.py [PORT]`.

Prints its URL once it listens; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import uvloop
from picows import WSUpgradeRequest

from hongyan.gateway import frames
from hongyan.gateway.heartbeat import Wheel
from hongyan.gateway.listener import FrameListener
from hongyan.gateway.wire import Wire, WireProtocol

MAX_BYTES = 16 * 1024 * 1024  # sections 9.* send up to that


class Echo(FrameListener):
    """Sends every message back as it came."""

    def on_message(self, payload: bytes) -> None:
        self.wire.transport.write(frames.encode(self.kind.value, payload))

    def on_other(self, opcode: int, payload: bytes) -> None:
        self.wire.transport.write(frames.encode(opcode, payload))

    def on_ping(self, payload: bytes) -> None:
        self.wire.transport.write(frames.encode(frames.PONG, payload))

    def on_deadline(self, now: float) -> float | None:
        return None  # a case may be silent for as long as it likes


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(time.monotonic)
    wheel.start()

    def accept(wire: Wire, request: WSUpgradeRequest) -> Echo:
        return Echo(wire, False, MAX_BYTES)

    def nothing(protocol: WireProtocol) -> None:
        pass

    server = await loop.create_server(
        lambda: WireProtocol(accept, nothing, nothing, wheel, 10.0, MAX_BYTES), "127.0.0.1", port
    )
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()
    wheel.stop()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
