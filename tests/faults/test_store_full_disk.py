"""A full disk under the store: the tail keeps what it was given, says `full`, and goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hongyan.protocol.state import Message
from hongyan.store.rocks import RocksStore
from store_rows import changes, message

pytestmark = pytest.mark.slow
PATIENCE_S = 60  # RocksDB looks every 5 s whether there is room for a write buffer (32 MiB)


@pytest.fixture
def small_disk(tmpfs: Callable[[str], Path]) -> Path:
    return tmpfs("64m")


def fill(disk: Path) -> Path:
    """Leave no room; deleting the file that is returned makes it again."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\x00" * 4096)
        except OSError:
            pass
    return ballast


async def test_the_tail_is_kept_and_written_once_there_is_space(small_disk: Path) -> None:
    died: list[BaseException] = []

    def opened() -> RocksStore:
        return RocksStore.open(
            small_disk / "store", "journal", tail_messages=2_000, flush_interval_ms=1, fatal=died.append
        )

    store = opened()
    rows = [message("#team", seq, size=20_000) for seq in range(1, 201)]
    store.apply(1, changes(rows[0]))
    assert await store.sync() == 1
    ballast = fill(small_disk)
    for seq in range(2, 201):  # nothing is raised, nothing is lost from sight
        store.apply(seq, changes(rows[seq - 1]))
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        while not store.flush_failures:
            await asyncio.sleep(0.01)
    refused_at = store.on_disk
    assert refused_at < 200
    assert walk(store) == rows
    offset = 200
    assert not store.refusing  # there is room in memory
    while not store.full:
        offset += 1
        store.apply(offset, changes(message("#other", offset - 200)))
        assert offset < 10_000, "never full"
    assert store.on_disk == refused_at
    assert store.refusing
    newest = store.messages("#other", 1, offset, 1, newest=True)
    assert newest == [message("#other", offset - 200)]
    waiting = asyncio.create_task(store.sync())
    await asyncio.sleep(0)
    assert not waiting.done()
    ballast.unlink()
    async with asyncio.timeout(PATIENCE_S):
        assert await waiting == offset
    assert not store.full
    assert not store.refusing
    assert not died
    await store.close()
    store = opened()
    assert store.offset == offset
    assert walk(store) == rows
    await store.close()


async def test_close_does_not_wait_for_space_and_the_rest_is_the_journals(small_disk: Path) -> None:
    died: list[BaseException] = []
    store = RocksStore.open(small_disk / "store", "journal", flush_interval_ms=1, fatal=died.append)
    store.apply(1, changes(message("#team", 1)))
    await store.sync()
    ballast = fill(small_disk)
    for seq in range(2, 102):
        store.apply(seq, changes(message("#team", seq, size=20_000)))
    async with asyncio.timeout(PATIENCE_S):
        await store.close()
    ballast.unlink()
    store = RocksStore.open(small_disk / "store", "journal", fatal=died.append)
    assert 1 <= store.offset < 101
    assert [row.seq for row in walk(store)] == list(range(1, store.offset + 1))
    await store.close()
    assert not died


def walk(store: RocksStore) -> list[Message]:
    found: list[Message] = []
    while some := store.messages("#team", len(found) + 1, 1000, 1000):
        found += some
    return found
