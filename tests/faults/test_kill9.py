"""kill -9 at random moments under load: 0 lost, 0 doubled, 0 gaps, 0 changed."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from pathlib import Path

import pytest

from server_process import ServerProcess

from .workload import SEVERAL_IF_LONG, Workload

pytestmark = pytest.mark.slow


def journal_of(server: ServerProcess) -> Path:
    """The one SQLite file in the data directory."""
    found = [
        p for p in server.data_dir.rglob("*") if p.is_file() and p.read_bytes()[:15] == b"SQLite format 3"
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("workers", [1, 4])
async def test_rounds_of_kill_9_under_load(server_factory, rounds, workers):
    server = server_factory(workers=workers, rate_limit=0)
    load = Workload(server, users=10 if rounds > 2 else 6)
    await load.prepare()
    chance = random.Random(9)
    for _ in range(rounds):
        await load.crash_after(chance.randrange(50, 2500), server.kill)
        await asyncio.to_thread(server.start)
        await load.settle_and_check()


@pytest.mark.parametrize("workers", SEVERAL_IF_LONG)
async def test_kill_9_during_recovery(server_factory, rounds, workers):
    """The store lags far behind (no flush), so that recovery has something to do; it is shot at random
    moments of it, then left to finish."""
    server = server_factory(
        workers=workers, rate_limit=0, store_flush_interval_ms=60_000, store_sync_interval_ms=60_000
    )
    load = Workload(server)
    await load.prepare()
    chance = random.Random(10)
    for _ in range(rounds):
        await load.crash_after(1500, server.kill)
        for _ in range(2):
            server.spawn()
            await asyncio.sleep(chance.uniform(0.1, 0.9))  # a random moment is the point
            server.kill()
        await asyncio.to_thread(server.start)
        await load.settle_and_check()


async def test_a_torn_last_write(server_factory, rounds):
    """A tail of garbage after the last whole frame of the WAL: what a write cut off by the crash leaves."""
    server = server_factory(rate_limit=0)
    load = Workload(server)
    await load.prepare()
    chance = random.Random(3)
    for number in range(rounds):
        await load.crash_after(chance.randrange(100, 1000), server.kill)
        wal = Path(f"{journal_of(server)}-wal")
        size = chance.randrange(1, 20_000)
        older = await asyncio.to_thread(wal.read_bytes)
        kinds = (bytes(size), chance.randbytes(size), older[-size:])
        append(wal, kinds[number % len(kinds)])
        await asyncio.to_thread(server.start)
        await load.settle_and_check()


async def test_the_journal_trimmed_to_its_last_row(server_factory, rounds):
    """Trimmed by the server itself: short duplicate window, quick syncs, then quiet."""
    server = server_factory(
        rate_limit=0,
        dedup_window_ms=1000,
        store_sync_interval_ms=200,
        store_flush_interval_ms=50,
        cursor_flush_interval_ms=100,
    )
    load = Workload(server)
    await load.prepare()
    for _ in range(rounds):
        await load.crash_after(600, server.kill)
        await asyncio.to_thread(server.start)
        await load.settle_and_check()
        deadline = time.monotonic() + 20
        while rows(server) > 1:
            assert time.monotonic() < deadline, f"{rows(server)} rows left in the journal"
            await asyncio.sleep(0.1)
        server.kill()
        await asyncio.to_thread(server.start)
        for user in load.users[1:]:
            again = await load.open(user)
            posts = [post for post in load.acked if post[0] == user][:20]
            for post in posts:
                answer = await again.say(post[1], "changed", key=post[2], retry=True)
                assert (answer["data"]["duplicate"], answer["data"]["seq"]) == (True, load.acked[post])
            await again.close()
        server.kill()
        await asyncio.to_thread(server.start)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def rows(server: ServerProcess) -> int:
    connection = sqlite3.connect(f"file:{journal_of(server)}?mode=ro", uri=True)
    try:
        return int(connection.execute("select count(*) from batches").fetchone()[0])
    finally:
        connection.close()
