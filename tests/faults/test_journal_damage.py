"""Foreign, damaged and newer journals are refused with a clear text and nothing is overwritten; a full
disk is waited out, any other I/O error ends all writing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hongyan.errors import DataDirectoryError, Unavailable
from hongyan.journal import sqlite
from hongyan.journal.base import Entry
from hongyan.journal.sqlite import SqliteJournal, _checksum
from hongyan.journal.sqlite_file import VERSION
from hongyan.protocol.records import Send

Damage = Callable[[Path], None]


def send(n: int, size: int = 10) -> Send:
    return Send(n, n, "alice", "alice|bob", f"k{n}", "text", b'"' + b"x" * size + b'"')


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A closed journal of three batches: records 1-2, 3-4, 5-6."""
    journal = SqliteJournal.open(tmp_path / "journal.db")
    for first in (1, 3, 5):
        await journal.append([send(first), send(first + 1)], first)
    await journal.close()
    return tmp_path / "journal.db"


def snapshot(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def sql(statement: str, *values: object) -> Damage:
    def damage(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute(statement, values)
        connection.commit()
        connection.close()

    return damage


def foreign(path: Path) -> None:
    path.unlink()
    sql("CREATE TABLE thesis (chapter)")(path)


def at(offset: int, content: bytes) -> Damage:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    return damage


def lost_with_its_log_left(path: Path) -> None:
    path.with_name("journal.db-wal").write_bytes(b"\x37\x7f\x06\x82" * 20)
    path.unlink()


def cut_within_its_first_page(path: Path) -> None:
    path.with_name("journal.db-wal").write_bytes(b"\x37\x7f\x06\x82" * 20)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_within_its_first_page, "damaged"),
        (foreign, "another program"),
        (lambda path: path.write_bytes(b""), "not a journal"),
        (lambda path: path.write_bytes(b"Dear diary, " * 1000), "not a journal"),
        (at(0, b"\x00" * 16), "not a journal"),
        (at(60, struct.pack(">I", VERSION + 1)), "newer version"),
        (at(100, b"\xff" * 4000), "damaged"),
        (lost_with_its_log_left, "missing"),
    ],
)
def test_refused_at_opening_and_left_alone(path: Path, damage: Damage, says: str) -> None:
    damage(path)
    before = snapshot(path.parent)
    with pytest.raises(DataDirectoryError, match=says) as refusal:
        SqliteJournal.open(path)
    assert str(path) in str(refusal.value)
    assert snapshot(path.parent) == before


def rewrite(records: list[object]) -> Damage:
    """Put a batch into the place of the second one, with a right checksum."""
    blob = msgspec.msgpack.encode(records)
    return sql("UPDATE batches SET records = ?, checksum = ? WHERE first = 3", blob, _checksum(3, 2, 3, blob))


_SEND = msgspec.msgpack.decode(msgspec.msgpack.encode(send(3)))


@pytest.mark.parametrize(
    ("damage", "offset", "says"),
    [
        (sql("DELETE FROM batches WHERE first = 3"), 3, "damaged"),
        (sql("UPDATE batches SET log_ms = 4 WHERE first = 3"), 3, "checksum"),
        (sql("UPDATE batches SET count = 3 WHERE first = 3"), 3, "checksum"),
        (sql("UPDATE batches SET first = 4 WHERE first = 3"), 3, "missing"),
        (sql("UPDATE batches SET records = x'90' WHERE first = 3"), 3, "checksum"),
        (rewrite([send(3)]), 3, "instead of 2"),
        (rewrite([send(3), ["zz", 4, 4]]), 3, "newer version"),
        (rewrite([send(3), [*_SEND, "a field of the future"]]), 3, "newer version"),
        (rewrite([send(3), [*_SEND[:7], 1]]), 3, "newer version"),
    ],
)
async def test_a_damaged_or_newer_row_stops_the_reading(
    path: Path, damage: Damage, offset: int, says: str
) -> None:
    damage(path)
    journal = SqliteJournal.open(path)
    entries = journal.read(0)
    assert next(entries).first == 1
    with pytest.raises(DataDirectoryError, match=says) as refusal:
        next(entries)
    assert str(offset) in str(refusal.value)
    await journal.close()


async def test_a_record_of_an_older_version_is_read_with_its_defaults(path: Path) -> None:
    assert _SEND[-1] is False  # `retry`, the field with a default
    rewrite([_SEND[:-1], send(4)])(path)
    journal = SqliteJournal.open(path)
    assert next(journal.read(2)).records == [send(3), send(4)]
    await journal.close()


async def test_a_creation_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    for name in ("journal.db.new", "journal.db.new-journal"):
        (tmp_path / name).write_bytes(b"half a file")
    journal = SqliteJournal.open(tmp_path / "journal.db")
    assert (await journal.append([send(1)], 5)).first == 1
    await journal.close()
    assert os.listdir(tmp_path) == ["journal.db"]


async def test_a_reader_of_another_process_does_not_disturb_the_writer(path: Path) -> None:
    script = (
        "import sqlite3, sys\n"
        "reader = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True)\n"
        "rows = reader.execute('SELECT first FROM batches')\n"
        "print(rows.fetchone()[0], flush=True)\n"  # and the statement stays open, holding its snapshot
        "sys.stdin.read()\n"
    )
    journal = SqliteJournal.open(path, checkpoint_bytes=64 * 1024)
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert reader.stdout is not None
    assert await reader.stdout.readline() == b"1\n"
    for n in range(7, 60):  # over several checkpoints
        await journal.append([send(n, 20_000)], n)
    await journal.trim(20)
    reader.kill()
    await reader.communicate()
    await journal.append([send(60)], 60)
    await journal.close()
    journal = SqliteJournal.open(path)
    assert [entry.first for entry in journal.read(0)] == list(range(21, 61))
    await journal.close()


@pytest.fixture
def small_disk(tmpfs: Callable[[str], Path]) -> Path:
    return tmpfs("3m")


async def fill(journal: SqliteJournal) -> list[Entry]:
    """Append until the disk is full. Returns what was acknowledged."""
    written: list[Entry] = []
    with pytest.raises(Unavailable):
        while len(written) < 1000:
            written += [await journal.append([send(len(written), 20_000)], len(written))]
    return written


async def test_a_full_disk_is_unavailable_and_waited_out(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\x00" * 1_000_000)
    journal = SqliteJournal.open(path, checkpoint_bytes=256 * 1024)
    written = await fill(journal)
    assert written
    for _ in range(3):  # still full; a refused append leaves its offsets free
        with pytest.raises(Unavailable):
            await journal.append([send(0, 200_000)], 0)
    await journal.trim(0)
    assert journal.last == written[-1].last
    ballast.unlink()
    entry = await journal.append([send(5000, 20_000)], 5000)
    assert entry.first == written[-1].last + 1
    await journal.close()
    journal = SqliteJournal.open(path)
    assert list(journal.read(0)) == [*written, entry]
    await journal.close()


async def test_a_trim_on_a_full_disk_loses_nothing_and_the_next_one_works(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"\x00" * 1_000_000)
    journal = SqliteJournal.open(small_disk / "journal.db", checkpoint_bytes=256 * 1024)
    full = len(await fill(journal))
    await journal.trim(full)  # needs room of its own, so it may drop nothing or a part
    offsets = [entry.first for entry in journal.read(0)]
    assert offsets == list(range(journal.first, full + 1))
    (small_disk / "ballast").unlink()
    await journal.trim(full)
    assert (journal.first, journal.last) == (full, full)
    for n in range(200):  # far more than the disk holds: what trims drop is used again
        entry = await journal.append([send(n, 20_000)], n)
        await journal.trim(entry.last - 10)
    await journal.close()


async def test_a_full_disk_then_kill_9(small_disk: Path, tmp_path: Path) -> None:
    journal = SqliteJournal.open(small_disk / "journal.db", checkpoint_bytes=256 * 1024)
    written = await fill(journal)
    (tmp_path / "killed").mkdir()
    for name in ("journal.db", "journal.db-wal"):
        (tmp_path / "killed" / name).write_bytes((small_disk / name).read_bytes())
    await journal.close()
    for directory in (small_disk, tmp_path / "killed"):
        again = SqliteJournal.open(directory / "journal.db")
        assert list(again.read(0)) == written
        await again.close()


async def test_after_any_other_error_nothing_is_written(path: Path) -> None:
    journal = SqliteJournal.open(path)
    journal._connection.execute("PRAGMA query_only = ON")  # every write fails, and not for want of room
    for _ in range(2):
        with pytest.raises(OSError, match="cannot be written"):
            await journal.append([send(7)], 7)
        journal._connection.execute("PRAGMA query_only = OFF")  # working again changes nothing
    with pytest.raises(OSError, match="cannot be written"):
        await journal.trim(3)
    assert journal.last == 6
    await journal.close()


async def test_a_lock_from_outside_is_waited_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    journal = SqliteJournal.open(path)
    outside = sqlite3.connect(path, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(Unavailable, match="locked"):
            await journal.append([send(7)], 7)
        await journal.trim(3)  # drops nothing for now
    assert (journal.first, journal.last) == (1, 6)
    outside.execute("ROLLBACK")
    assert (await journal.append([send(7)], 7)).first == 7
    await journal.trim(6)
    await journal.close()
    outside.close()
    again = SqliteJournal.open(path)
    assert [entry.last for entry in again.read(0)] == [7]
    await again.close()
