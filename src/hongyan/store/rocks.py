"""The view on RocksDB, behind a tail in memory.

A write holds the GIL (40 MB froze every thread for 60 ms), so one is about 1 MB and 1,000 rows at most,
with the loop's other work in between; it takes whole batches in offset order together with the offset,
so what is on disk is always the state at one offset. Nothing is fsynced but in `sync`, in a thread
(`flush_wal` releases the GIL): what a crash cuts off, the journal replays. After a full disk RocksDB takes
writes again by itself, some 5 s after as much as its buffers hold (8 of 4 MiB) is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from rocksdict import AccessType, Rdict, WriteBatch, WriteOptions

from hongyan.errors import DataDirectoryError
from hongyan.protocol.state import Changes
from hongyan.store import keys
from hongyan.store.options import options
from hongyan.store.reads import RocksReads
from hongyan.store.rows import write_batch

log = structlog.get_logger("hongyan.store")

VERSION = b"7"
_RETRY_S = (0.2, 0.5, 1.0)
# How RocksDB's text begins (Status::ToString) where trying again helps; any other failure ends the process.
# Only the beginning: behind it may stand a path, with any words in it. "Too many open files" is not here: measured,
# RocksDB takes no write after it until it is opened again; connections never get so far (descriptors.py).
_PASSING = (
    "IO error: No space left on device",
    "Result incomplete:",  # `no_slowdown`, and the write would have to wait
    "Resource busy:",
    "Operation failed. Try again.:",
    "Shutdown in progress:",
)


class RocksStore(RocksReads):
    """See `hongyan.store.base.Store`. `fatal` is called with an I/O error that nothing can go on after."""

    def __init__(
        self, db: Rdict, offset: int, *, cache_conversations: int, tail_messages: int, tail_bytes: int,
        flush_interval_ms: int, fatal: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        super().__init__(db, cache_conversations, fatal)
        self.offset = offset
        self.on_disk = offset
        self._synced = offset
        self._tail_rows = 2 * tail_messages
        self._tail_bytes = tail_bytes
        self._interval_s = flush_interval_ms / 1000
        self._write_options = WriteOptions()
        self._write_options.no_slowdown = True
        self._timer: asyncio.Handle | None = None
        self._soon = False  # the timer is for a complete or a refused unit
        self.full = False
        self._fsync: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._failures = 0
        self._forgotten = 0  # `unstored` has nothing up to here
        self._noted = offset  # nor anything past this
        self.flushes = 0
        self.flushed_rows = 0
        self.flush_failures = 0

    @classmethod
    def open(
        cls, path: Path, identity: str, *, cache_conversations: int = 100_000, tail_messages: int = 100_000,
        tail_bytes: int = 64 << 20, flush_interval_ms: int = 200, max_open_files: int = 2048,
        fatal: Callable[[BaseException], None],
    ) -> RocksStore:  # fmt: skip
        """Open or create; blocks. `identity` is the journal's. Raises DataDirectoryError."""
        # RocksDB would take it for a new store, and delete the tables as left over. (Of one whose making a crash cut
        # off there may be an empty log.)
        rows = [file for kind in ("*.sst", "*.log") for file in path.glob(kind) if file.stat().st_size]
        if rows and not (path / "CURRENT").exists():
            raise DataDirectoryError(f"the store {path} is damaged: it has rows but no file CURRENT")
        try:
            db = Rdict(str(path), options(max_open_files), access_type=AccessType.read_write())
        except Exception as error:
            raise DataDirectoryError(f"the store {path} does not open: {error}") from None
        try:
            version, whose = db.get(keys.VERSION), db.get(keys.IDENTITY)
            if version is None and db.latest_sequence_number() == 0:
                first = WriteBatch(raw_mode=True)
                first.put(keys.VERSION, VERSION)
                first.put(keys.IDENTITY, identity.encode())
                db.write(first)
            elif version != VERSION:
                whose_version = (version or b"?").decode(errors="replace")
                raise DataDirectoryError(
                    f"the store {path} is of version {whose_version}, this one knows {VERSION.decode()}"
                )
            elif whose != identity.encode():
                raise DataDirectoryError(
                    f"the store {path} belongs to another journal: restore both from one backup"
                )
            raw = db.get(keys.OFFSET)
        except DataDirectoryError:
            db.close()
            raise
        except Exception as error:
            db.close()
            raise DataDirectoryError(f"the store {path} is damaged: {error}") from None
        return cls(
            db, keys.read_number(raw) if raw is not None else 0, cache_conversations=cache_conversations,
            tail_messages=tail_messages, tail_bytes=tail_bytes, flush_interval_ms=flush_interval_ms, fatal=fatal,
        )  # fmt: skip

    # -- writing ---------------------------------------------------------------------------------

    @property
    def pending_rows(self) -> int:
        return self._tail.pending_rows

    @property
    def pending_bytes(self) -> int:
        return self._tail.pending_bytes

    @property
    def refusing(self) -> bool:
        return self.full and self._failures > 0

    def apply(self, offset: int, changes: Changes) -> None:
        self.offset = offset
        if changes.unstored:
            self._noted = offset
        self._tail.add(offset, changes)
        self._conversations.update(changes.conversations)
        self._memberships.refresh(changes.memberships)  # nobody may ever ask for a new direct chat's two
        self._users.update(changes.users)
        self._weigh()
        if self.full and not self._failures:
            self._write_unit()  # `busy` is for a disk that refuses, not for a timer that has not come yet
        if self._timer is None or (self._tail.ready and not self._soon):
            self._schedule()

    def _weigh(self) -> None:
        tail = self._tail
        self.full = tail.pending_rows >= self._tail_rows or tail.pending_bytes >= self._tail_bytes

    def _schedule(self) -> None:
        """Write a complete unit soon, a small one after the interval, a refused one after a while."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._tail.units or self._db is None:
            return
        self._soon = self._tail.ready or self._failures > 0
        delay = 0.0 if self._soon else self._interval_s
        if self._failures:
            delay = _RETRY_S[min(self._failures, len(_RETRY_S)) - 1]
        self._timer = asyncio.get_running_loop().call_later(delay, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._tail.units and self._db is not None:
            self._write_unit()
        self._schedule()

    def _write_unit(self) -> bool:
        """Write the oldest unit down. False: refused for now, nothing was passed over."""
        assert self._db is not None
        unit = self._tail.units[0]
        batch = write_batch(unit)
        rows = len(batch)
        try:
            self._db.write(batch, self._write_options)
        except Exception as error:
            if not self._failures:
                log.warning("the store refuses a write, it is tried again", error=str(error))
            self._failures += 1
            self.flush_failures += 1
            if not passing(error):
                self._fatal(error)
            return False
        if self._failures:
            log.info("the store takes writes again", after_refusals=self._failures)
        self._failures = 0
        self.flushes += 1
        self.flushed_rows += rows
        self.on_disk = unit.offset
        self._tail.drop()
        self._weigh()
        return True

    def forget(self, upto: int) -> None:
        if self._db is None or upto <= self._forgotten or self._noted <= self._forgotten:
            return
        batch = WriteBatch(raw_mode=True)
        # One tombstone, and nothing is read. Where there is nothing to drop there is none: every `get` looks for them.
        batch.delete_range(keys.unstored(self._forgotten + 1), keys.unstored(upto + 1))
        try:
            self._db.write(batch, self._write_options)
        except Exception as error:  # the next time, then
            if not passing(error):
                self._fatal(error)
            return
        self._forgotten = upto

    async def sync(self) -> int:
        target = self.offset
        while self.on_disk < target and self._db is not None:
            await asyncio.sleep(0 if self._write_unit() else _RETRY_S[0])
        while self._fsync is not None and not self._fsync.done():  # one at a time, for which `close` waits
            await asyncio.wait([self._fsync])
        if self._db is None or self._synced == self.on_disk:
            return self._synced
        safe = self.on_disk
        self._fsync = asyncio.ensure_future(asyncio.to_thread(self._db.flush_wal, True))
        try:
            await asyncio.shield(self._fsync)
        except Exception as error:
            if not passing(error):
                self._fatal(error)
            return self._synced
        self._synced = max(self._synced, safe)
        return self._synced

    async def close(self, patience_s: float = 5.0) -> None:
        """See the port. So long a full disk is waited for."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(patience_s))
        await asyncio.shield(self._closing)

    async def _close(self, patience_s: float) -> None:
        try:
            async with asyncio.timeout(
                patience_s
            ):  # a full disk must not keep the process: the journal has it all
                await self.sync()
        except TimeoutError:
            pass
        if self._timer is not None:
            self._timer.cancel()
        db, self._db = self._db, None
        assert db is not None
        if self._fsync is not None:  # rocksdict refuses to close while another thread is in a call
            await asyncio.wait([self._fsync])
        try:
            await asyncio.to_thread(db.close)
        except Exception as error:
            if not self._failures:  # else: the log of writes is as broken as the disk was full
                self._fatal(error)


def passing(error: Exception) -> bool:
    """Whether trying again may help."""
    return str(error).startswith(_PASSING)
