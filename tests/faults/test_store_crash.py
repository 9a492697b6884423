"""kill -9 on the store: what is on disk is exactly the state at its offset. Damaged stores are refused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hongyan.errors import DataDirectoryError
from hongyan.store.rocks import RocksStore
from store_rows import everything

from .store_writer import KEYS, NAMES, USERS, batch, model_at


def opened(path: Path, identity: str = "journal") -> RocksStore:
    return RocksStore.open(path, identity, cache_conversations=2, fatal=pytest.fail)


def files(path: Path) -> dict[str, bytes]:
    """The data of a store: its tables, logs of writes and manifests (not RocksDB's own diary)."""
    return {
        file.name: file.read_bytes()
        for file in path.iterdir()
        if file.suffix in (".sst", ".log") or file.name.startswith(("MANIFEST", "CURRENT"))
    }


def write_until_killed(path: Path, syncs: int) -> int:
    """Apply batches in a process of its own until it synced `syncs` times, then kill it. Returns the
    last offset that it said was safe."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("store_writer.py"), path],
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        safe = [int(writer.stdout.readline()) for _ in range(syncs)][-1]
        writer.send_signal(signal.SIGKILL)  # it goes on meanwhile, so this hits any point of a later batch
        writer.stdout.read()
    return safe


@pytest.mark.slow
async def test_after_kill_9_the_store_is_the_state_at_its_offset(tmp_path: Path, rounds: int) -> None:
    path, chance = tmp_path / "store", random.Random(7)
    before = 0
    for _ in range(rounds):
        safe = write_until_killed(path, chance.randrange(1, 12))
        store = opened(path)
        assert store.offset >= safe > before
        model = model_at(store.offset)
        assert everything(store, USERS, NAMES, KEYS, 50) == everything(model, USERS, NAMES, KEYS, 50)
        store.apply(store.offset + 1, batch(store.offset + 1, model))
        await store.close()
        before = store.offset


async def test_a_torn_end_of_the_write_log_takes_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store, model = opened(path), model_at(0)
    for offset in range(1, 31):
        made = batch(offset, model)
        store.apply(offset, made)
        model.apply(offset, made)
        await store.sync()  # one write each
    kept = {file.name: file.read_bytes() for file in path.iterdir()}
    await store.close()
    (log,) = [name for name in kept if name.endswith(".log")]
    chance = random.Random(3)
    seen = set()
    for number in range(12):
        torn = tmp_path / f"torn{number}"
        torn.mkdir()
        for name, content in kept.items():
            (torn / name).write_bytes(content)
        (torn / log).write_bytes(kept[log][: chance.randrange(len(kept[log]) // 4, len(kept[log]))])
        again = opened(torn)
        seen.add(again.offset)
        assert 0 < again.offset < 30
        expected = everything(model_at(again.offset), USERS, NAMES, KEYS, 50)
        assert everything(again, USERS, NAMES, KEYS, 50) == expected
        await again.close()
    assert len(seen) > 3


async def test_another_journals_store_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    store.apply(1, batch(1, model_at(0)))
    await store.close()
    before = files(tmp_path / "store")
    with pytest.raises(DataDirectoryError, match="belongs to another journal"):
        opened(tmp_path / "store", "another")
    again = opened(tmp_path / "store")
    assert again.offset == 1
    await again.close()
    assert before.keys() & files(tmp_path / "store").keys()


async def test_a_store_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("hongyan.store.rocks.VERSION", b"999")
        await opened(tmp_path / "store").close()
    with pytest.raises(DataDirectoryError, match="version"):
        opened(tmp_path / "store")


async def test_two_at_once_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    with pytest.raises(DataDirectoryError, match="does not open"):
        opened(tmp_path / "store")
    await store.close()


def garble(path: Path) -> None:
    path.write_bytes(b"\x5a" * path.stat().st_size)


def newest(path: Path, pattern: str) -> Path:
    return max(path.glob(pattern))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "manifest garbled": lambda path: garble(newest(path, "MANIFEST-*")),
    "manifest lost": lambda path: newest(path, "MANIFEST-*").unlink(),
    "manifest emptied": lambda path: newest(path, "MANIFEST-*").write_bytes(b""),
    "table lost": lambda path: newest(path, "*.sst").unlink(),
    "table emptied": lambda path: newest(path, "*.sst").write_bytes(b""),
    "table garbled": lambda path: garble(newest(path, "*.sst")),
    "CURRENT lost": lambda path: (path / "CURRENT").unlink(),
    "CURRENT and logs lost": lambda path: [
        file.unlink() for file in [path / "CURRENT", *path.glob("*.log"), *path.glob("MANIFEST-*")]
    ],
    "CURRENT garbled": lambda path: garble(path / "CURRENT"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_store_is_refused_and_nothing_overwritten(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store"
    for offset in (1, 2, 3):  # opening again turns the log of writes into a table
        store = opened(path)
        store.apply(offset, batch(offset, model_at(offset - 1)))
        await store.close()
    await opened(path).close()
    assert list(path.glob("*.sst"))
    DAMAGE[damage](path)
    before = files(path)
    with pytest.raises(DataDirectoryError, match="store"):
        opened(path)
    after = files(path)
    assert {name: after.get(name) for name in before if not name.endswith(".log")} == {
        name: content for name, content in before.items() if not name.endswith(".log")
    }


async def test_a_young_store_without_current_is_refused_every_time(tmp_path: Path) -> None:
    """All it has is a log of writes."""
    store = opened(tmp_path / "store")
    store.apply(1, batch(1, model_at(0)))
    await store.sync()
    path = shutil.copytree(tmp_path / "store", tmp_path / "as a kill leaves it")
    await store.close()
    assert not list(path.glob("*.sst"))
    (path / "CURRENT").unlink()
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for _ in range(2):
        with pytest.raises(DataDirectoryError, match="no file CURRENT"):
            opened(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


async def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"mine")
    with pytest.raises(DataDirectoryError, match="store"):
        opened(tmp_path / "store")
    assert (tmp_path / "store").read_bytes() == b"mine"
