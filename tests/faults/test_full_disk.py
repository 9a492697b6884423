"""A full disk: `unavailable`, nothing acknowledged that is not kept, service resumes by itself."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from outsider import Outsider
from server_process import ask

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmpfs: Callable[[str], Path]) -> Path:
    return tmpfs("48m")


async def test_a_full_disk_is_unavailable_then_service_resumes(server_factory, small_disk):
    server = server_factory(data_dir=small_disk / "data", rate_limit=0)
    try:
        client = await Outsider.connect(server.url)
        await client.login(server.token("a"))
        await client.say("@a", "before")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\x00" * 65536)
            except OSError:
                pass
        sent: dict[str, str] = {}
        acked: dict[str, int] = {}
        refusal = None
        for n in range(2000):  # what the journal's preallocated room still takes is fine
            key, content = f"k{n}", f"{n}" + "x" * 20_000
            sent[key] = content
            answer = await client.reply(await client.post("@a", content, key), 12)
            if answer["type"] == "ack":
                acked[key] = answer["data"]["seq"]
            else:
                refusal = answer["data"]
                break
        assert refusal is not None
        assert refusal["code"] in ("unavailable", "busy")
        assert refusal["retry"] == "backoff"
        if refusal["code"] == "unavailable":
            assert ask(f"{server.http}/readyz")[0] == 503
        ballast.unlink()
        until = time.monotonic() + 30
        while ask(f"{server.http}/readyz")[0] != 200:  # by itself: nobody sends to a server that is not ready
            assert time.monotonic() < until
            await asyncio.sleep(0.1)
        deadline = time.monotonic() + 30
        for key in [key for key in sent if key not in acked]:
            while True:
                answer = await client.reply(await client.post("@a", sent[key], key, retry=True), 12)
                if answer["type"] == "ack":
                    acked[key] = answer["data"]["seq"]
                    break
                assert time.monotonic() < deadline, answer
                await asyncio.sleep(0.5)
        assert server.process is not None
        assert server.process.poll() is None
        await client.close()
        await asyncio.to_thread(server.restart)
        client = await Outsider.connect(server.url)
        await client.login(server.token("a"))
        items = await client.all_history("@a")
        assert [m["seq"] for m in items] == list(range(1, len(items) + 1))
        assert {m["key"]: (m["seq"], m["content"]) for m in items[1:]} == {
            k: (acked[k], sent[k]) for k in sent
        }
        await client.close()
    finally:
        server.kill()


async def test_a_start_on_a_full_disk_says_so_and_can_be_stopped(server_factory, small_disk):
    """The journal has what the store cannot take: the replay waits for room, and SIGTERM ends it."""
    data = small_disk / "data"
    server = server_factory(data_dir=data, rate_limit=0)
    assert server.terminate() == 0
    shutil.copytree(data / "store", small_disk / "old")
    server.start()
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    for n in range(400):
        await client.say("@a", f"{n}" + "x" * 20_000)
    client.abort()
    server.kill()
    shutil.rmtree(data / "store")
    (small_disk / "old").rename(data / "store")
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\x00" * 65536)
        except OSError:
            pass
        file.truncate(file.tell() - (2 << 20))  # RocksDB opens with that, and takes no 8 MB
    starved = server_factory(started=False, data_dir=data, tail_bytes=100_000)
    process = starved.process = starved.spawn()
    try:
        deadline = time.monotonic() + 30
        while "the store refuses a write" not in starved.log:
            assert process.poll() is None, starved.log
            assert time.monotonic() < deadline, starved.log
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(starved.terminate) == 0
        assert "stopped while replaying" in starved.log
        ballast.unlink()
        await asyncio.to_thread(starved.start, 60)
        client = await Outsider.connect(starved.url)
        await client.login(starved.token("a"))
        assert len(await client.all_history("@a")) == 400
        await client.close()
    finally:
        starved.kill()
