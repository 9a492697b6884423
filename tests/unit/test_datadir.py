"""The data directory: its lock, its mark of ownership, its secret, its clock mark."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hongyan.datadir import FORMAT, SECRET_BYTES, ClockMark, DataDirectory, read_secret
from hongyan.errors import DataDirectoryError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def snapshot(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}


def test_a_new_directory_is_private_and_reopens_as_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a" / "data"
    directory = DataDirectory.open(path)
    secret = directory.secret()
    assert len(secret) >= SECRET_BYTES
    assert mode(path) == 0o700
    assert mode(path / "secret") == mode(path / "format") == 0o600
    assert {directory.journal_path.parent, directory.store_path.parent, directory.mark_path.parent} == {path}
    directory.close()
    directory.close()
    again = DataDirectory.open(path)
    assert (again.identity, again.secret()) == (directory.identity, secret)
    again.close()
    assert not [name for name in os.listdir(path) if name.startswith(".hongyan-")]


def test_a_second_server_is_refused_with_path_and_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from hongyan.datadir import DataDirectory\n"
        "DataDirectory.open(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "d")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(DataDirectoryError) as refusal:
            DataDirectory.open(tmp_path / "d")
        assert str(tmp_path / "d") in str(refusal.value)
        assert str(holder.pid) in str(refusal.value)
        assert len(read_secret(tmp_path / "d")) >= SECRET_BYTES  # beside the running server
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    DataDirectory.open(tmp_path / "d").close()  # the lock went with its holder


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for use in (DataDirectory.open, read_secret):
        with pytest.raises(DataDirectoryError, match=r"thesis\.txt"):
            use(tmp_path)
    assert snapshot(tmp_path) == {"thesis.txt": b"mine"}


def test_a_fresh_file_system_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    DataDirectory.open(tmp_path).close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps({"version": FORMAT + 1, "future": True}).encode(), "newer version"),
        (b"", "damaged"),
        (b"\x00" * 40, "damaged"),
        (b'{"version": "x"}', "damaged"),
    ],
)
def test_a_newer_or_damaged_format_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, says: str
) -> None:
    DataDirectory.open(tmp_path).close()
    (tmp_path / "format").write_bytes(content)
    before = snapshot(tmp_path)
    for use in (DataDirectory.open, read_secret):
        with pytest.raises(DataDirectoryError, match=says):
            use(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_cut_off_secret_is_refused_not_replaced(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path)
    directory.secret()
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(DataDirectoryError, match="secret"):
        directory.secret()
    with pytest.raises(DataDirectoryError, match="secret"):
        read_secret(tmp_path)
    assert (tmp_path / "secret").read_bytes() == b"short"
    directory.close()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataDirectoryError, match="cannot be used"):
        DataDirectory.open(tmp_path / "data")


def test_what_a_creator_that_died_left_does_not_make_the_directory_foreign(tmp_path: Path) -> None:
    old, young = tmp_path / ".hongyan-format-0", tmp_path / ".hongyan-secret-1"
    old.write_bytes(b"{")
    young.write_bytes(b"")
    os.utime(old, (0, 0))
    DataDirectory.open(tmp_path).close()
    assert not old.exists()
    assert young.exists(), "a file that may be in another process's hands was removed"


def _create(path: Path, barrier: object, secrets: object, server: bool) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    if server:
        directory = DataDirectory.open(path)
        secrets.put(directory.secret())  # type: ignore[attr-defined]
        directory.close()
    else:
        secrets.put(read_secret(path))  # type: ignore[attr-defined]


def test_concurrent_creators_agree_on_one_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = 4
    barrier, secrets = context.Barrier(processes), context.SimpleQueue()
    for attempt in range(8):
        path = tmp_path / str(attempt) / "data"
        running = [
            context.Process(target=_create, args=(path, barrier, secrets, number == 0))
            for number in range(processes)
        ]
        for process in running:
            process.start()
        for process in running:
            process.join(30)
            assert process.exitcode == 0
        assert len({secrets.get() for _ in running} | {read_secret(path)}) == 1


def test_the_clock_mark_is_there_after_reopening(tmp_path: Path) -> None:
    mark = ClockMark(tmp_path / "clock")
    assert mark.load() == 0
    mark.save(1_800_000_000_000)
    mark.save(1_800_000_001_000)
    mark.close()
    mark.close()
    assert ClockMark(tmp_path / "clock").load() == 1_800_000_001_000


@pytest.mark.parametrize("content", [b"", b"\x01" * 7, b"\x00" * 16, b"\xff" * 16, b"\x01" * 100])
def test_a_damaged_clock_mark_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clock").write_bytes(content)
    assert ClockMark(tmp_path / "clock").load() == 0


def test_a_lost_secret_of_a_used_directory_is_not_made_anew(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path)
    directory.secret()
    directory.journal_path.touch()
    (tmp_path / "secret").unlink()
    for use in (directory.secret, lambda: read_secret(tmp_path)):
        with pytest.raises(DataDirectoryError, match="secret is missing"):
            use()
    assert not (tmp_path / "secret").exists()
    (tmp_path / "secret").write_bytes(b"n" * SECRET_BYTES)  # what the text advises
    assert directory.secret() == read_secret(tmp_path) == b"n" * SECRET_BYTES
    directory.close()
