"""Power loss. kill -9 keeps the page cache, so it proves nothing about fsync: here a preloaded library
keeps a shadow of the directory as of every file's last fsync, and the server is started on that."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from server_process import ServerProcess

from .workload import Workload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the fsync shadow"),
]


class Disk:
    """A data directory, and beside it what its disk would hold."""

    def __init__(self, root: Path, library: Path) -> None:
        self.data = root / "data"
        self.shadow = root / "shadow"
        self.shadow.mkdir()
        self.env = {"LD_PRELOAD": str(library), "SHADOW_OF": str(self.data), "SHADOW_TO": str(self.shadow)}

    def lose_power(self, chance: random.Random | None = None) -> None:
        """The directory becomes its shadow. With `chance`, unsynced tails of WALs survive in part."""
        tails = []
        for file in self.shadow.rglob("*-wal"):  # named for good
            real = self.data / file.relative_to(self.shadow)
            if chance is not None and real.exists() and real.stat().st_size > file.stat().st_size:
                length = chance.randint(file.stat().st_size, real.stat().st_size)
                tails.append((real.relative_to(self.data), real.read_bytes()[:length]))
        shutil.rmtree(self.data)
        for leftover in self.shadow.rglob("*.shadow-*"):  # half copied, or a name no directory was synced for
            leftover.unlink()
        shutil.copytree(self.shadow, self.data)
        for path, content in tails:
            (self.data / path).write_bytes(content)


@pytest.mark.parametrize(
    ("partial", "window_ms"), [(False, 300_000), (True, 300_000), (False, 100)],
    ids=["last-fsync", "any-length-after-it", "journal-trimmed"],
)  # fmt: skip
async def test_everything_acknowledged_is_there(
    server_factory, tmp_path, shadow_library, rounds, partial, window_ms
):
    """With a short window the journal is trimmed to what the store has not synced: the store must have the rest."""
    disk = Disk(tmp_path, shadow_library)
    server: ServerProcess = server_factory(
        root=tmp_path, started=False, env=disk.env, rate_limit=0, dedup_window_ms=window_ms,
        store_sync_interval_ms=700 if window_ms > 1000 else 50,
    )  # fmt: skip
    server.start()
    load = Workload(server)
    await load.prepare()
    chance = random.Random(11)
    # a backlog read in part, before the first cut: where this device starts must not move
    late = await load.open("late")
    await late.ask("join_group", {"group": "#crowd"})
    await late.close()
    for _ in range(rounds):
        await load.crash_after(chance.randrange(300, 2000), server.kill)
        disk.lose_power(chance if partial else None)
        await asyncio.to_thread(server.start)
        await load.settle_and_check()
        late = await load.open("late")
        row = (await late.ask("conversations"))["conversations"]
        assert [r["conversation"] for r in row] == ["#crowd"], "a membership is gone"
        await late.close()


async def test_users_passwords_and_device_starts_survive(server_factory, tmp_path, shadow_library):
    import httpx

    disk = Disk(tmp_path, shadow_library)
    server: ServerProcess = server_factory(root=tmp_path, started=False, env=disk.env)
    server.start()
    load = Workload(server)
    account = {"user_id": "carol", "password": "carol's password"}
    async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=20) as http:
        assert (await http.post("/api/v1/auth/register", json=account)).status_code == 201
    alice, bob = await load.open("alice"), await load.open("bob")
    for n in range(10):
        await alice.say("@bob", n)
    await bob.send("ack", {"conversation": "@alice", "seq": 6})
    await bob.barrier()
    second = await load.open("bob", "second")  # starts at 6, where the furthest device stands
    await bob.send("ack", {"conversation": "@alice", "seq": 10})
    await bob.barrier()
    for client in (alice, bob, second):
        client.abort()
    server.kill()
    disk.lose_power()
    await asyncio.to_thread(server.start)
    async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=20) as http:
        assert (await http.post("/api/v1/auth/login", json=account)).status_code == 200
    second = await load.open("bob", "second")
    assert [m["seq"] for m in await second.sync()] == [7, 8, 9, 10]
    await second.close()
