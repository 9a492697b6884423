"""Strangers may use up their share of the file descriptors, and never that of journal, store and HTTP."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path

import pytest

from outsider import Outsider
from server_process import ServerProcess

pytestmark = pytest.mark.slow

LIMIT = 512


def flood(port: int, count: int, addresses: int) -> list[socket.socket]:
    """Connections that never say a word."""
    opened = []
    for number in range(count):
        idle = socket.socket()
        idle.setblocking(False)
        idle.bind((f"127.0.1.{1 + number % addresses}", 0))
        idle.connect_ex(("127.0.0.1", port))
        opened.append(idle)
    return opened


def descriptors(server: ServerProcess) -> int:
    assert server.process is not None
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@pytest.mark.parametrize("addresses", [1, 200])
async def test_idle_connections_do_not_starve_the_store(server_factory, addresses):
    server: ServerProcess = server_factory(rate_limit=0, open_files=LIMIT)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    strangers = flood(server.port, 2 * LIMIT, addresses) + flood(server.http_port, LIMIT, addresses)
    try:
        for _ in range(40):  # 24 MB: RocksDB begins its next files
            keys = [await client.post("@a", "x" * 30_000) for _ in range(20)]
            for key in keys:
                assert (await client.reply(key))["type"] == "ack"
        assert descriptors(server) < LIMIT - 32, "the reserve is gone"
        assert server.process is not None
        assert server.process.poll() is None, server.log[-2000:]
    finally:
        for stranger in strangers:
            stranger.close()
    again = await Outsider.connect(server.url)  # what they held is free again
    await again.login(server.token("b"))
    await again.close()
    await client.close()
    assert await asyncio.to_thread(server.terminate) == 0
    assert "Traceback" not in server.log


async def test_one_address_leaves_room_for_others(server_factory):
    server: ServerProcess = server_factory(open_files=LIMIT)
    strangers = flood(server.port, 2 * LIMIT, 1)
    try:
        client = await Outsider.connect(server.url, local_addr=("127.0.0.9", 0))
        await client.login(server.token("a"))
        await client.say("@a", 1)
        await client.close()
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_limit_that_leaves_no_room_is_refused(tmp_path: Path):
    server = ServerProcess(tmp_path, max_connections=5000, open_files=1024)
    assert server.spawn().wait(30) == 2
    assert "max_connections" in server.log
    assert "Traceback" not in server.log


async def test_the_soft_limit_is_raised(server_factory):
    server: ServerProcess = server_factory(open_files=(256, 4096))
    assert server.process is not None
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (4096, 4096)
