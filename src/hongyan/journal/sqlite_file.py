"""The SQLite journal's file: how it is created, recognised and opened.

The file comes into being under another name and is renamed when it is whole, so a `journal.db` without our
application id in its header is never ours, and is refused before SQLite has touched it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import struct
from pathlib import Path

from hongyan.datadir import fsync_directory
from hongyan.errors import DataDirectoryError

APPLICATION_ID = 0x48594A31  # "HYJ1", at offset 68 of the file (sqlite.org/fileformat.html, 1.3)
# Raised with every change of the table or of a record's shape that an older program would misread.
VERSION = 2
PAGE_BYTES = 16_384
# So long a write waits for someone who locks the file from outside (a backup, a curious operator).
BUSY_S = 5.0

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


def create(path: Path) -> None:
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


def check_header(path: Path) -> None:
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
            f"{path} was written by {'a newer' if version > VERSION else 'an older'} version of hongyan "
            f"(journal version {version}, this one knows {VERSION}): start that version"
        )
    if path.stat().st_size < PAGE_BYTES:  # SQLite would refuse it too, but write its log into it before
        raise DataDirectoryError(f"the journal {path} is damaged (cut off): restore it from a backup")


def refusal(path: Path, error: sqlite3.Error) -> DataDirectoryError:
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DataDirectoryError(f"the journal {path} is locked by another process")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_ERROR:
            return DataDirectoryError(f"the journal {path} is damaged ({error}): restore it from a backup")
        case _:
            return DataDirectoryError(f"the journal {path} cannot be opened: {error}")


def begin(connection: sqlite3.Connection, checkpoint_bytes: int) -> tuple[str, int, int]:
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
