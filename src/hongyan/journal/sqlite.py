"""The journal on SQLite: one row a batch (a MessagePack blob), one fsync a batch.

WAL with `synchronous=FULL`: a commit fsyncs the log before it returns, with the GIL released. A standing
thread writes, because handing each batch to an executor costs more than the write. Offsets are explicit and
the newest row is never dropped: SQLite's own integer keys begin again at 1 once a table is empty.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from hongyan.errors import DataDirectoryError, Unavailable
from hongyan.journal.base import Entry
from hongyan.journal.sqlite_file import BUSY_S, PAGE_BYTES, begin, check_header, create, refusal
from hongyan.protocol.records import Record

# The log is copied into the database past this size. Its file keeps about this length.
CHECKPOINT_BYTES = 16 * 1024 * 1024
# What one step of a trim drops: an append waits behind one step at most.
TRIM_ROWS, TRIM_BYTES = 64, 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Record]).decode
_row_header = struct.Struct("<qqq").pack


class _Append(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[int]  # the batch's first offset
    size: int  # records
    log_ms: int
    blob: bytes


class _Trim(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    upto: int


class _Stop(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class SqliteJournal:
    """See `journal.base.Journal`. Use it on one event loop."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        identity: str,
        first: int,
        last: int,
        checkpoint_bytes: int,
    ) -> None:
        self._connection = connection
        self._path = path
        self._identity = identity
        self._first, self._last = first, last
        self._checkpoint_bytes = checkpoint_bytes
        self._closing: asyncio.Future[None] | None = None
        self._jobs: queue.SimpleQueue[_Append | _Trim | _Stop] = queue.SimpleQueue()
        # From here on only the thread's:
        self._written = last
        self._failure: OSError | None = None
        self._since_checkpoint = 0
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, checkpoint_bytes: int = CHECKPOINT_BYTES) -> SqliteJournal:
        """Open the journal, creating it where absent. Blocking.

        Raises DataDirectoryError: foreign, damaged or newer; nothing is overwritten then.
        That no second process writes is the data directory's lock; reading beside the server is allowed.
        Raises OSError where the file cannot be created or read.
        """
        wal = path.with_name(path.name + "-wal")
        if not path.exists():
            if wal.exists() and wal.stat().st_size:
                raise DataDirectoryError(
                    f"{path} is missing, but its write-ahead log {wal.name} is there: put the file back, "
                    "or restore the directory from a backup"
                )
            create(path)
        check_header(path)
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            identity, first, last = begin(connection, checkpoint_bytes)
        except sqlite3.Error as error:
            connection.close()
            raise refusal(path, error) from error
        return cls(connection, path, identity, first, last, checkpoint_bytes)

    @property
    def last(self) -> int:
        return self._last

    @property
    def first(self) -> int:
        return self._first

    @property
    def identity(self) -> str:
        return self._identity

    async def append(self, records: Sequence[Record], log_ms: int) -> Entry:
        """See the port. A cancelled append may have been made durable all the same."""
        if not records:
            raise ValueError("a batch has at least one record")
        loop = self._running()
        future: asyncio.Future[int] = loop.create_future()
        self._jobs.put(_Append(loop, future, len(records), log_ms, _encode(records)))
        return Entry(await future, log_ms, records)

    def read(self, after: int) -> Iterator[Entry]:
        # A connection of its own: on one that two threads use, an error of the one may read as the other's.
        with closing(sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)) as connection:
            yield from self._read(connection, after)

    def _read(self, connection: sqlite3.Connection, after: int) -> Iterator[Entry]:
        expected = 0
        while True:
            # One row a statement: no read stays open that would keep the log from being checkpointed.
            try:
                row = connection.execute(
                    "SELECT first, count, log_ms, checksum, records FROM batches WHERE first >= "
                    "coalesce((SELECT max(first) FROM batches WHERE first <= ?), 0) ORDER BY first LIMIT 1",
                    (after + 1,),
                ).fetchone()
            except sqlite3.Error as error:
                raise self._damaged(after + 1, str(error)) from error
            if row is None or row[0] + row[1] - 1 <= after:
                if after < self._last:
                    raise self._damaged(after + 1, "missing")
                return
            entry = self._entry(row)
            if expected and entry.first != expected:
                raise self._damaged(expected, f"the next one is {entry.first}")
            after, expected = entry.last, entry.last + 1
            yield entry

    async def trim(self, upto: int) -> None:
        """See the port. On a full disk nothing, or a part, is dropped; the next trim goes on."""
        loop = self._running()
        future: asyncio.Future[None] = loop.create_future()
        self._jobs.put(_Trim(loop, future, upto))
        await future

    async def close(self) -> None:
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._closing = loop.create_future()
            self._jobs.put(_Stop(loop, self._closing))
        await asyncio.shield(self._closing)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._closing is not None:
            raise OSError(f"the journal {self._path} is closed")
        return asyncio.get_running_loop()

    def _damaged(self, offset: int, why: str) -> DataDirectoryError:
        return DataDirectoryError(
            f"the journal {self._path} is damaged at record {offset} ({why}): "
            "restore the directory from a backup"
        )

    def _entry(self, row: tuple[int, int, int, int, bytes]) -> Entry:
        first, count, log_ms, checksum, blob = row
        if not isinstance(blob, bytes) or _checksum(first, count, log_ms, blob) != checksum:
            raise self._damaged(first, "wrong checksum")
        newer = DataDirectoryError(
            f"the journal {self._path} has a record of a newer version of hongyan at {first}: "
            "start that version"
        )
        try:
            records = _decode(blob)
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
        ) as error:  # it is as it was written: the sum is right
            raise newer from error
        # A field that a newer version added at a record's end would be ignored silently; what this version
        # knows then takes fewer bytes. (Of an older version it takes as many or more.)
        if len(_encode(records)) < len(blob):
            raise newer
        if len(records) != count:
            raise self._damaged(first, f"{len(records)} records instead of {count}")
        return Entry(first, log_ms, records)

    # The thread

    def _work(self) -> None:
        while type(job := self._jobs.get()) is not _Stop:
            if type(job) is _Append:
                self._append(job)
            elif type(job) is _Trim:
                self._trim(job)
            if self._since_checkpoint >= self._checkpoint_bytes:
                # After the append was answered: what waits for it goes on meanwhile.
                self._checkpoint()
        try:
            self._connection.close()  # checkpoints; where that fails, the log stays for the next start
        except sqlite3.Error:
            pass
        while not self._jobs.empty():
            late = self._jobs.get()
            if type(late) is _Trim:
                _tell(late.loop, _resolve, late.future, None)
        _tell(job.loop, _resolve, job.future, None)

    def _append(self, job: _Append) -> None:
        first = self._written + 1
        try:
            if self._failure is not None:
                raise self._failure
            self._connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?)",
                (first, job.size, job.log_ms, _checksum(first, job.size, job.log_ms, job.blob), job.blob),
            )
        except Exception as error:
            _tell(job.loop, _fail, job.future, self._translated(error))
            return
        self._written += job.size
        # A small batch writes two pages of the table at most, beside what it fills.
        self._since_checkpoint += len(job.blob) + 2 * PAGE_BYTES
        _tell(job.loop, self._appended, job.future, first, self._written)

    def _appended(self, future: asyncio.Future[int], first: int, last: int) -> None:
        """On the loop. Also where the waiter was cancelled: the batch is in the journal all the same."""
        self._last = last
        if not future.done():
            future.set_result(first)

    def _trim(self, job: _Trim) -> None:
        """Drop one step's rows; the rest goes to the queue's end, behind the append that waits."""
        try:
            if self._failure is not None:
                raise self._failure
            kept, more = self._drop(job.upto)
        except Exception as error:
            translated = self._translated(error)
            if isinstance(translated, Unavailable):
                _tell(job.loop, _resolve, job.future, None)
            else:
                _tell(job.loop, _fail, job.future, translated)
            return
        _tell(job.loop, self._trimmed, job.future, kept, not more)
        if more:
            self._jobs.put(job)

    def _trimmed(self, future: asyncio.Future[None], first: int, done: bool) -> None:
        self._first = first
        if done:
            _resolve(future, None)

    def _drop(self, upto: int) -> tuple[int, bool]:
        """One step. Returns the oldest offset then kept, and whether there is more to drop."""
        # As one row: for each row of a result sqlite3 lets go of the interpreter lock and takes it back,
        # which on a busy server costs both threads a switch.
        (listed,) = self._connection.execute(
            "SELECT json_group_array(json_array(first, count, length(records))) "
            "FROM (SELECT * FROM batches ORDER BY first LIMIT ?)",
            (TRIM_ROWS + 1,),
        ).fetchall()[0]
        rows = sorted(msgspec.json.decode(listed, type=list[tuple[int, int, int]]))
        below, size = 0, 0
        for number, (first, count, length) in enumerate(rows):
            newest = number + 1 == len(rows)  # of the step, or of the journal: it stays either way
            if newest or first + count - 1 > upto or size >= TRIM_BYTES:
                break
            below, size = first + count, size + length
        if not below:
            return (rows[0][0] if rows else self._written + 1), False
        self._connection.execute("DELETE FROM batches WHERE first < ?", (below,))
        self._since_checkpoint += 4 * PAGE_BYTES
        return below, below <= upto and below <= self._written

    def _checkpoint(self) -> None:
        """Copy the log into the database, after which SQLite begins the log anew."""
        self._since_checkpoint = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except Exception as error:
            self._translated(error)  # a full disk: the log goes on growing; else the next append fails

    def _translated(self, error: Exception) -> Exception:
        """What the waiter is told. Anything but a full disk or a lock ends all writing: after a failed fsync
        nobody knows what the kernel still holds."""
        if _locked(error):
            return Unavailable(f"another process has locked the journal {self._path}")
        if _no_room(error):
            self._since_checkpoint = self._checkpoint_bytes  # a log begun anew needs no more of the disk
            return Unavailable(f"no room for the journal {self._path}")
        if self._failure is None:
            self._failure = OSError(f"the journal {self._path} cannot be written: {error}")
            self._failure.__cause__ = error
        return self._failure


def _no_room(error: Exception) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE  # of the log's index


def _locked(error: Exception) -> bool:
    """SQLite takes the lock of its log before it writes anything (sqlite.org/wal.html, "Concurrency")."""
    code: int = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        pass  # the loop is closed: nobody waits


def _resolve(future: asyncio.Future[None], result: None) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[int], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _checksum(first: int, count: int, log_ms: int, blob: bytes) -> int:
    return zlib.crc32(blob, zlib.crc32(_row_header(first, count, log_ms)))
