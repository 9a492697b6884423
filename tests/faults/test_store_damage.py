"""A damaged block of the store: an error that says so, never "no messages", never a traceback at the start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rocksdict import Rdict

from hongyan.errors import DataDirectoryError
from hongyan.protocol.state import Membership
from hongyan.store import keys
from hongyan.store.options import options
from hongyan.store.rocks import RocksStore
from outsider import Outsider
from server_process import ServerProcess
from store_rows import changes, message

from .test_stop import refused_start

pytestmark = pytest.mark.slow
COUNT = 300


def damage(store: Path) -> None:
    """Flip bits in every block of the data but the last ones, where the store's own rows are; not in the index and the
    footer behind them."""
    for table in store.glob("*.sst"):
        body = bytearray(table.read_bytes())
        for place in range(100, len(body) * 9 // 10 - 6000, 1000):
            body[place] ^= 0x55
        table.write_bytes(body)


def damage_own_rows(store: Path) -> None:
    """The block that says which journal the store belongs to, and where it stands."""
    (table,) = [table for table in store.glob("*.sst") if keys.IDENTITY in table.read_bytes()]
    body = bytearray(table.read_bytes())
    body[body.index(keys.IDENTITY)] ^= 0x55
    table.write_bytes(body)


def to_tables(store: Path) -> None:
    """What RocksDB still has in its log, written into tables."""
    db = Rdict(str(store), options())
    db.flush()
    db.close()


def opened(path: Path, failures: list[BaseException]) -> RocksStore:
    return RocksStore.open(path, "journal-1", fatal=failures.append)


async def test_no_read_takes_damage_for_an_end(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    store = opened(tmp_path / "store", failures)
    for seq in range(1, COUNT + 1):
        made = changes(
            message("alice|bob", seq, size=500),
            memberships={("alice", f"alice|{seq:060}{n}"): Membership(1, 1, 1) for n in range(10)},
        )
        made.unstored += range(2**62, 2**62 + 40)
        store.apply(seq, made)
    await store.sync()
    await store.close()
    to_tables(tmp_path / "store")
    damage(tmp_path / "store")
    store = opened(tmp_path / "store", failures)
    for newest in (False, True):
        for low, high in ((1, COUNT), (COUNT // 2, COUNT), (1, COUNT // 2)):
            with pytest.raises(DataDirectoryError, match="damaged"):
                store.messages("alice|bob", low, high, COUNT, newest)
    with pytest.raises(DataDirectoryError, match="damaged"):
        store.find("alice", "alice|bob", "k7")
    with pytest.raises(DataDirectoryError, match="damaged"):
        store.memberships("alice")
    with pytest.raises(DataDirectoryError, match="damaged"):
        store.unstored(1)  # a start that cannot tell what the duplicate window held is refused
    assert failures == []  # damage costs what it hits; it is no broken disk
    await store.close()


async def test_a_server_says_what_is_damaged_when_it_needs_it(server_factory) -> None:
    server: ServerProcess = server_factory(rate_limit=0, store_sync_interval_ms=50)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    for n in range(COUNT):
        await client.post("@a", f"{n}" * 200, f"k{n}")
    for n in range(COUNT):
        await client.reply(f"k{n}")
    await client.close()
    assert await asyncio.to_thread(server.terminate) == 0
    to_tables(server.data_dir / "store")
    damage(server.data_dir / "store")
    await asyncio.to_thread(server.start)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    assert (await client.refused("history", {"conversation": "@a"}))["code"] == "internal"
    new = {"to": "@a", "content_type": "text", "content": 1, "retry": True}
    assert (await client.refused("send_message", new, "a new key"))["code"] == "internal"
    await client.ask("heartbeat")  # it cost the request, not the server
    await client.close()
    assert await asyncio.to_thread(server.terminate) == 0
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.terminate)
    damage_own_rows(server.data_dir / "store")
    assert "damaged" in refused_start(server)
