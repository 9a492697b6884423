"""kill -9, power loss and a torn last write on the journal: what was acknowledged is there, batches whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hongyan.errors import DataDirectoryError
from hongyan.journal.sqlite import SqliteJournal

from .journal_writer import batch

pytestmark = pytest.mark.slow
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the fsync shadow")
SECTOR = 512


def write_until_killed(
    path: Path, seed: int, batches: int, *mode: str, env: dict[str, str] | None = None
) -> int:
    """Append at least `batches` batches in a process of its own, then kill it. Returns the last offset
    that it said was durable."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("journal_writer.py"), path, str(seed), *mode],
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | (env or {}),
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(batches)]
        writer.send_signal(signal.SIGKILL)  # it goes on meanwhile, so this hits any point of a later batch
        rest = writer.stdout.read().split(b"\n")[:-1]  # what follows the last line break was cut off
    return [*acknowledged, *map(int, rest)][-1]


async def check(path: Path, acknowledged: int) -> int:
    """Everything acknowledged is there, every batch whole and as written. Returns the last offset."""
    journal = SqliteJournal.open(path)
    try:
        assert journal.last >= acknowledged, f"lost {journal.last + 1} to {acknowledged}"
        entries = list(journal.read(0))
        assert entries[0].first == journal.first
        assert entries[-1].last == journal.last
        for entry in entries:
            assert list(entry.records) == batch(entry.first)
            assert entry.log_ms == entry.first
        return journal.last
    finally:
        await journal.close()


async def test_kill_9_during_appends(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(5)
    last = 0
    for number in range(rounds):
        acknowledged = write_until_killed(tmp_path / "journal.db", number, chance.randrange(1, 300))
        assert acknowledged > last, "offsets went back"
        last = await check(tmp_path / "journal.db", acknowledged)


async def test_kill_9_after_a_trim_to_the_last_row(tmp_path: Path) -> None:
    journal = SqliteJournal.open(tmp_path / "journal.db")
    while journal.last < 300:
        newest = await journal.append(batch(journal.last + 1), journal.last + 1)
    await journal.trim(journal.last)
    assert journal.first == newest.first
    (tmp_path / "killed").mkdir()
    for name in ("journal.db", "journal.db-wal"):  # what a kill now would leave
        shutil.copy(tmp_path / name, tmp_path / "killed" / name)
    await journal.close()
    for path in (tmp_path / "killed" / "journal.db", tmp_path / "journal.db"):
        again = SqliteJournal.open(path)
        assert (again.first, again.last) == (newest.first, newest.last)
        assert (await again.append(batch(again.last + 1), again.last + 1)).first == newest.last + 1
        await again.close()
        await check(path, newest.last + 1)


class Disk:
    """A directory, and a shadow of it as of each file's last fsync."""

    def __init__(self, root: Path, library: Path) -> None:
        self.data, self.shadow = root / "data", root / "shadow"
        self.data.mkdir()
        self.shadow.mkdir()
        self.env = {"LD_PRELOAD": str(library), "SHADOW_OF": str(self.data), "SHADOW_TO": str(self.shadow)}

    def lose_power(self, survives: float, chance: random.Random) -> None:
        """The directory becomes its shadow; of the sectors written since, each `survives` with that chance
        and the rest never reached the disk, whatever the order they were written in.

        That is no harsher than a disk: at any moment writes are outstanding on the log, or on the database
        (the log synced before, and not begun anew until the database is synced), never on both in turn."""
        for leftover in self.shadow.rglob("*.shadow-new"):
            leftover.unlink()
        for file in self.data.iterdir():
            kept = self.shadow / file.name
            if not kept.exists():  # never synced
                file.unlink()
                continue
            old, new = kept.read_bytes(), file.read_bytes()
            length = chance.choice([len(old), max(len(old), len(new))]) if survives else len(old)
            mixed = bytearray(old.ljust(length, b"\x00"))
            for at in range(0, min(len(new), length), SECTOR):
                end = min(at + SECTOR, len(new), length)
                if new[at:end] != mixed[at:end] and chance.random() < survives:
                    mixed[at:end] = new[at:end]
            file.write_bytes(mixed)
            kept.write_bytes(mixed)


@needs_cc
@pytest.mark.parametrize("survives", [0.0, 0.5, 0.95], ids=["nothing-since-the-fsync", "half", "nearly-all"])
async def test_power_loss_during_appends(
    tmp_path: Path, shadow_library: Path, rounds: int, survives: float
) -> None:
    disk = Disk(tmp_path, shadow_library)
    path = disk.data / "journal.db"
    chance = random.Random(int(survives * 100))
    for number in range(rounds):
        # enough batches for several checkpoints, so the log is begun anew and old frames lie behind new ones
        acknowledged = write_until_killed(path, number, chance.randrange(1, 250), env=disk.env)
        disk.lose_power(survives, chance)
        await check(path, acknowledged)
        for name in ("journal.db", "journal.db-wal"):  # the check's own close is no power loss
            (disk.shadow / name).unlink(missing_ok=True)
            if (disk.data / name).exists():
                shutil.copy(disk.data / name, disk.shadow / name)


@needs_cc
async def test_power_loss_without_fsync_is_seen(tmp_path: Path, shadow_library: Path) -> None:
    """The test above can fail: with the journal's fsync off it finds what was lost."""
    disk = Disk(tmp_path, shadow_library)
    acknowledged = write_until_killed(disk.data / "journal.db", 1, 50, "unsafe", env=disk.env)
    disk.lose_power(0.0, random.Random(1))
    with pytest.raises((AssertionError, IndexError, DataDirectoryError)):
        await check(disk.data / "journal.db", acknowledged)


@pytest.mark.parametrize("how", ["cut", "zeroed", "garbled"])
async def test_a_torn_last_write_takes_only_the_last_batch(tmp_path: Path, how: str) -> None:
    path, wal = tmp_path / "journal.db", tmp_path / "journal.db-wal"
    journal = SqliteJournal.open(path)
    ends = []
    for _ in range(6):
        await journal.append(batch(journal.last + 1), journal.last + 1)
        ends.append((journal.last, wal.stat().st_size))
    files = {name: (tmp_path / name).read_bytes() for name in ("journal.db", "journal.db-wal")}
    await journal.close()
    (before, whole), (_, size) = ends[-2:]
    chance = random.Random(3)
    points = {whole, whole + 1, whole + 24, size - 1, *(chance.randrange(whole, size) for _ in range(20))}
    for point in sorted(points):
        (tmp_path / "torn").mkdir(exist_ok=True)
        torn = tmp_path / "torn" / "journal.db"
        torn.write_bytes(files["journal.db"])
        log = files["journal.db-wal"]
        tail = {"cut": b"", "zeroed": b"\x00" * (size - point), "garbled": chance.randbytes(size - point)}[
            how
        ]
        torn.with_name("journal.db-wal").write_bytes(log[:point] + tail)
        assert await check(torn, before) == before
        again = SqliteJournal.open(torn)
        assert (await again.append(batch(before + 1), before + 1)).first == before + 1
        await again.close()
        assert await check(torn, before + 1) == ends[-1][0]
