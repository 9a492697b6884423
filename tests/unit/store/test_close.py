"""rocksdict refuses to close while a thread is in a call: a stop must not meet a sync of the checkpoint's."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from hongyan.protocol.state import Changes, User
from hongyan.store.rocks import RocksStore


class SlowDisk:
    """A database whose first `flush_wal` waits for `go`; `close` must not come meanwhile."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.go = threading.Event()
        self.begun = threading.Event()
        self.flushing = self.most = 0
        self.closed_early = False
        self.lock = threading.Lock()

    def flush_wal(self, sync: bool) -> None:
        with self.lock:
            self.flushing += 1
            self.most = max(self.most, self.flushing)
            first = not self.begun.is_set()
            self.begun.set()
        if first:
            assert self.go.wait(10)
        self.db.flush_wal(sync)
        with self.lock:
            self.flushing -= 1

    def close(self) -> None:
        self.closed_early = self.flushing > 0
        self.db.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


def change(user: str) -> Changes:
    made = Changes()
    made.users[user] = User(1)
    return made


async def test_a_close_waits_for_every_sync_under_way(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    store = RocksStore.open(tmp_path / "store", "journal", fatal=failures.append)
    disk: Any = SlowDisk(store._db)
    store._db = disk
    store.apply(1, change("a"))
    syncs = [asyncio.create_task(store.sync())]
    await asyncio.to_thread(disk.begun.wait, 10)
    store.apply(2, change("b"))
    syncs.append(asyncio.create_task(store.sync()))
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.1)  # for a second flush and a close that should not come
    assert not closing.done()
    disk.go.set()
    await closing
    await asyncio.gather(*syncs)
    assert not disk.closed_early
    assert disk.most == 1
    assert failures == []
