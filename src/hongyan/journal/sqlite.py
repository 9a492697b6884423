"""The journal on SQLite: one row a batch (a MessagePack blob), one fsync a batch.

WAL with `synchronous=FULL`: a commit fsyncs the log before it returns, with the GIL released. A standing
thread writes, because handing each batch to an executor costs more than the write. Offsets are explicit and
the newest row is never dropped: SQLite's own integer keys begin again at 1 once a table is empty.

The file comes into being under another name and is renamed when it is whole, so a `journal.db` without our
application id in its header is never ours, and is refused before SQLite has touched it.
"""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from hongyan.datadir import fsync_directory
from hongyan.errors import DataDirectoryError, Unavailable
from hongyan.journal.base import Entry
from hongyan.protocol.records import Record

APPLICATION_ID = 0x48594A31  # "HYJ1", at offset 68 of the file (sqlite.org/fileformat.html, 1.3)
# Raised with every change of the table or of a record's shape that an older program would misread.
VERSION = 1
PAGE_BYTES = 16_384
# The log is copied into the database past this size. Its file keeps about this length.
CHECKPOINT_BYTES = 16 * 1024 * 1024
# So long a write waits for someone who locks the file from outside (a backup, a curious operator).
_BUSY_S = 5.0
# What one step of a trim drops: an append waits behind one step at most.
TRIM_ROWS, TRIM_BYTES = 64, 1024 * 1024

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (
    first INTEGER PRIMARY KEY,   -- offset of the first record
    count INTEGER NOT NULL,      -- of records: the next row's first is first + count
    log_ms INTEGER NOT NULL,     -- ms since the Unix epoch
    checksum INTEGER NOT NULL,   -- CRC-32 of first, count, log_ms and the records
    records BLOB NOT NULL        -- a MessagePack array of protocol.records
);
"""

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
            _create(path)
        _check_header(path)
        connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            identity, first, last = _begin(connection, checkpoint_bytes)
        except sqlite3.Error as error:
            connection.close()
            raise _refusal(path, error) from error
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
        expected = 0
        while True:
            # One row a statement: no read stays open that would keep the log from being checkpointed.
            try:
                row = self._connection.execute(
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
        rows = self._connection.execute(
            "SELECT first, count, length(records) FROM batches ORDER BY first LIMIT ?", (TRIM_ROWS + 1,)
        ).fetchall()
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
        """What the waiter is told. Anything but a full disk ends all writing: after a failed fsync nobody
        knows what the kernel still holds."""
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


def _create(path: Path) -> None:
    """Make an empty journal: whole and durable, or not there at all."""
    fresh = path.with_name(path.name + ".new")
    for suffix in ("", "-journal", "-wal", "-shm"):  # of a creation that was cut short
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO meta VALUES ('identity', ?)", (secrets.token_hex(16),))
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    except sqlite3.Error as error:
        raise OSError(f"the journal {path} cannot be created: {error}") from error
    finally:
        connection.close()
    fd = os.open(fresh, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, path)
    fsync_directory(path.parent)


def _check_header(path: Path) -> None:
    """Refuse a file that is not a journal of ours, reading it ourselves: SQLite would recover it first."""
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or header[:16] != b"SQLite format 3\x00":
        raise DataDirectoryError(
            f"{path} is damaged or not a journal: restore it from a backup, or move it away"
        )
    version, application = struct.unpack(">4xI4xI", header[56:72])
    if application != APPLICATION_ID:
        raise DataDirectoryError(f"{path} is a database of another program: move it away")
    if version != VERSION:
        raise DataDirectoryError(
            f"{path} was written by a newer version of hongyan (journal version {version}, this one knows "
            f"{VERSION}): start that version"
        )


def _refusal(path: Path, error: sqlite3.Error) -> DataDirectoryError:
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DataDirectoryError(f"the journal {path} is locked by another process")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_ERROR:
            return DataDirectoryError(f"the journal {path} is damaged ({error}): restore it from a backup")
        case _:
            return DataDirectoryError(f"the journal {path} cannot be opened: {error}")


def _begin(connection: sqlite3.Connection, checkpoint_bytes: int) -> tuple[str, int, int]:
    """Set the connection up. Returns identity, first and last."""
    execute = connection.execute
    execute("PRAGMA synchronous = FULL")
    execute("PRAGMA fullfsync = ON")  # macOS: a plain fsync does not reach the medium
    execute("PRAGMA wal_autocheckpoint = 0").fetchall()  # the thread does it once it has answered
    execute(f"PRAGMA journal_size_limit = {2 * checkpoint_bytes}").fetchall()
    execute("PRAGMA cache_size = -8192")
    # On in some distributions' builds: a trim would write zeros over everything that it drops.
    execute("PRAGMA secure_delete = OFF").fetchall()
    mode = execute("PRAGMA journal_mode = WAL").fetchone()
    if mode[0] != "wal":
        raise sqlite3.OperationalError(f"journal_mode is {mode[0]}")
    identity = execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
    if identity is None:
        raise sqlite3.DatabaseError("no identity")
    oldest = execute("SELECT first FROM batches ORDER BY first LIMIT 1").fetchone()
    newest = execute("SELECT first + count - 1 FROM batches ORDER BY first DESC LIMIT 1").fetchone()
    last = newest[0] if newest else 0
    return identity[0], oldest[0] if oldest else last + 1, last
