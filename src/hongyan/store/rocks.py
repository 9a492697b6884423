"""The view on RocksDB, behind a tail in memory.

A write holds the GIL (40 MB froze every thread for 60 ms), so one is about 1 MB and 2,000 rows at most,
with the loop's other work in between; it takes whole batches in offset order together with the offset,
so what is on disk is always the state at one offset. Nothing is fsynced but in `sync`, in a thread
(`flush_wal` releases the GIL): what a crash cuts off, the journal replays.

Reads are synchronous: `get` holds the GIL too (two threads take twice as long as one), for 1.6 µs from its
cache and 0.5 µs where the bloom filters know of no such key, so a thread would cost more than it frees
(`scripts/benchmark/store.py`). After a full disk RocksDB takes writes again by itself, some 5 s
after as much as its buffers hold (8 of 4 MiB) is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import structlog
from rocksdict import AccessType, Rdict, RdictIter, ReadOptions, WriteBatch, WriteOptions

from hongyan.errors import DataDirectoryError
from hongyan.protocol.state import Changes, Conversation, Membership, Message, Sent, User
from hongyan.store import keys
from hongyan.store.cache import Cache
from hongyan.store.options import options
from hongyan.store.rows import (
    FIRST,
    decode_conversation,
    decode_membership,
    decode_run,
    decode_sent,
    decode_user,
    write_batch,
)
from hongyan.store.tail import MISSING, Tail

log = structlog.get_logger("hongyan.store")

VERSION = b"5"
READ_BYTES = 512 * 1024
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
_DAMAGED = "Corruption:"
_MAX_SEQ = 2**63


class RocksStore:
    """See `hongyan.store.base.Store`. `fatal` is called with an I/O error that nothing can go on after."""

    def __init__(
        self, db: Rdict, offset: int, *, cache_conversations: int, tail_messages: int, tail_bytes: int,
        flush_interval_ms: int, fatal: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._db: Rdict | None = db
        self.offset = offset
        self.on_disk = offset
        self._synced = offset
        self._tail = Tail()
        self._tail_rows = 2 * tail_messages
        self._tail_bytes = tail_bytes
        self._interval_s = flush_interval_ms / 1000
        self._fatal = fatal
        self._conversations: Cache[str, Conversation] = Cache(cache_conversations)
        self._memberships: Cache[tuple[str, str], Membership] = Cache(2 * cache_conversations)
        self._users: Cache[str, User] = Cache(cache_conversations)
        self._write_options = WriteOptions()
        self._write_options.no_slowdown = True
        self._timer: asyncio.Handle | None = None
        self._soon = False  # the timer is for a complete or a refused unit
        self.full = False
        self._fsync: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._failures = 0
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
        if not (path / "CURRENT").exists() and any(path.glob("*.sst")):
            # RocksDB would take it for a new store and delete the tables as left over
            raise DataDirectoryError(f"the store {path} is damaged: it has tables but no file CURRENT")
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

    def apply(self, offset: int, changes: Changes) -> None:
        self.offset = offset
        self._tail.add(offset, changes)
        self._conversations.update(changes.conversations)
        self._memberships.update(changes.memberships)
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

    # -- reading ---------------------------------------------------------------------------------

    def _get(self, key: bytes) -> bytes | None:
        assert self._db is not None
        try:
            found: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._unreadable(error) from None
        return found

    def _check(self, rows: RdictIter) -> None:
        """An iterator ends at what it cannot read as it does at the last row; only its status tells them apart."""
        try:
            rows.status()
        except Exception as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> DataDirectoryError:
        """A block that fails its checksum costs what is in it; a disk that does not read costs the process."""
        log.error("the store cannot be read", error=str(error))
        if not str(error).startswith(_DAMAGED):
            self._fatal(error)
        path = self._db.path() if self._db is not None else ""
        return DataDirectoryError(
            f"the store {path} is damaged ({error}): restore the directory from a backup"
        )

    # What is not there is not noted: a client may name as many as it likes.

    def conversation(self, key: str) -> Conversation | None:
        recent = self._conversations.young.get(key) or self._conversations.get(key)
        if recent is not None:
            return recent
        row: Conversation | None = self._tail.conversation(key)
        if row is MISSING:
            row = self._stored_conversation(key)
        if row is not None:
            self._conversations.put(key, row)
        return row

    def _stored_conversation(self, key: str) -> Conversation | None:
        if not key.isascii():
            return None
        if key[0] == "#":
            raw = self._get(keys.conversation(key))
            return decode_conversation(raw) if raw is not None else None
        # The first message is asked for first: mostly the chat is new, and it is not there.
        prefix = keys.messages(key)
        run = self._get(prefix + keys.number(1))
        if run is None:
            return None
        raw = self._get(keys.conversation(key))
        if raw is not None:
            row = decode_conversation(raw)
            run = self._get(prefix + keys.number(row.last_seq + 1))
        while (
            run is not None
        ):  # what has come since the row was written; each begins where the one before ends
            newest = decode_run(run)[-1]
            row = Conversation(newest.seq, newest.at)
            run = self._get(prefix + keys.number(newest.seq + 1))
        return row

    def user(self, user: str) -> User | None:
        recent = self._users.young.get(user) or self._users.get(user)
        if recent is not None:
            return recent
        row: User | None = self._tail.user(user)
        if row is MISSING:
            raw = self._get(keys.user(user))
            row = decode_user(raw) if raw is not None else None
        if row is not None:
            self._users.put(user, row)
        return row

    def membership(self, user: str, conversation: str) -> Membership | None:
        at = (user, conversation)
        recent = self._memberships.young.get(at) or self._memberships.get(at)
        if recent is not None:
            return recent
        row: Membership | None = self._tail.membership(user, conversation)
        if row is MISSING:
            raw = self._get(keys.memberships(user) + conversation.encode())
            row = decode_membership(raw) if raw is not None else None
        if row is not None:
            self._memberships.put(at, row)
        return row

    def find(self, sender: str, conversation: str, key: str) -> Sent | None:
        found = self._tail.find((sender, conversation, key))
        if found is not None:
            return found
        raw = self._get(keys.sent(sender, conversation, key))
        if raw is not None:
            return decode_sent(raw)
        for message in self._first(conversation):
            if message.sender == sender and message.key == key:
                found = Sent(message.seq, message.id, message.at)
        return found

    def _first(self, conversation: str) -> list[Message]:
        """The first messages on disk: at most FIRST. They are in as many runs or fewer, each of which begins
        where the one before ends; so no iterator is needed."""
        found: list[Message] = []
        prefix = keys.messages(conversation)
        while len(found) < FIRST and (raw := self._get(prefix + keys.number(len(found) + 1))) is not None:
            found += decode_run(raw)
        return found[:FIRST]

    def members(self, group: str, after: int = 0, limit: int = 1000) -> list[tuple[int, str]]:
        prefix = keys.members(group)
        rows = _scan(self._rows_from(prefix, keys.number(after + 1)), keys.read_number, limit,
                     self._tail.members(group), after)  # fmt: skip
        return [(position, user.decode() if isinstance(user, bytes) else user) for position, user in rows]

    def memberships(self, user: str, after: str = "", limit: int = 1000) -> list[tuple[str, Membership]]:
        prefix = keys.memberships(user)
        rows = _scan(self._rows_from(prefix, after.encode() + b"\x00"), bytes.decode, limit,
                     self._tail.memberships(user), after)  # fmt: skip
        return [(key, decode_membership(row) if isinstance(row, bytes) else row) for key, row in rows]

    def _rows_from(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key without prefix, value) of the rows on disk, from `prefix` + `start` on."""
        assert self._db is not None
        rows = self._db.iter(ReadOptions())
        rows.seek(prefix + start)
        cut = len(prefix)
        while rows.valid():
            key: bytes = rows.key()
            if not key.startswith(prefix):
                return
            yield key[cut:], rows.value()
            rows.next()
        self._check(rows)

    def messages(
        self, conversation: str, low: int, high: int, limit: int, newest: bool = False
    ) -> list[Message]:
        high = min(high, _MAX_SEQ)
        tail = self._tail.messages(conversation)
        border = tail[0].seq if tail else high + 1  # what is below is on disk
        if not newest:
            found = (
                list(self._stored(conversation, low, min(high, border - 1), limit)) if low < border else []
            )
            if len(found) < limit and high >= border:
                start = max(low - border, 0)
                found += islice(tail, start, min(high - border + 1, start + limit - len(found)))
            return _bounded(found, limit)
        recent: list[Message] = []
        if high >= border:
            stop = min(high - border + 1, len(tail))
            recent = list(islice(tail, max(low - border, stop - limit, 0), stop))[::-1]
        if len(recent) < limit and low < border:
            recent += self._stored(conversation, low, min(high, border - 1), limit - len(recent), newest=True)
        return _bounded(recent, limit)[::-1]

    def _stored(
        self, conversation: str, low: int, high: int, limit: int, newest: bool = False
    ) -> Iterator[Message]:
        """Messages on disk from one end of [low, high], whole runs at a time."""
        if low > high:
            return
        assert self._db is not None
        prefix = keys.messages(conversation)
        rows = self._db.iter(ReadOptions())
        rows.seek_for_prev(prefix + keys.number(high if newest else low))
        if not newest and not (rows.valid() and rows.key().startswith(prefix)):
            if not rows.valid():
                self._check(rows)
            rows.seek(prefix + keys.number(low))
        count = size = 0
        while rows.valid() and rows.key().startswith(prefix):
            run = decode_run(rows.value())
            if (run[-1].seq < low) if newest else (run[0].seq > high):
                return
            for message in reversed(run) if newest else run:
                if low <= message.seq <= high:
                    yield message
                    count += 1
                    size += len(message.content)
                    if count >= limit or size >= READ_BYTES:
                        return
            if newest:
                rows.prev()
            else:
                rows.next()
        if not rows.valid():
            self._check(rows)


def passing(error: Exception) -> bool:
    """Whether trying again may help."""
    return str(error).startswith(_PASSING)


def _bounded(messages: list[Message], limit: int) -> list[Message]:
    """The first `limit`, or as many as make up READ_BYTES; one at least."""
    size = 0
    for count, message in enumerate(messages[:limit]):
        size += len(message.content)
        if size > READ_BYTES and count:
            return messages[:count]
    return messages[:limit]


def _scan(
    rows: Iterator[tuple[bytes, bytes]],
    name: Callable[[bytes], Any],
    limit: int,
    fresh: dict[Any, Any],
    after: Any,
) -> list[tuple[Any, Any]]:
    """The first `limit` rows past `after`, the tail's `fresh` over those on disk (None deletes)."""
    found: dict[Any, Any] = {}
    last = MISSING
    for key, value in rows:
        at = name(key)
        if at not in fresh:
            found[at] = value
            if len(found) >= limit:
                last = at
                break
    for at, value in fresh.items():
        if value is not None and at > after and (last is MISSING or at < last):
            found[at] = value
    return sorted(found.items())[:limit]
