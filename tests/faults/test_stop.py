"""SIGTERM under load, a second server, a damaged or foreign directory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hongyan.stopping import REPEAT_S
from outsider import Outsider
from server_process import SOURCES, ServerProcess

from .workload import SEVERAL_IF_LONG, Workload

pytestmark = pytest.mark.slow


def contents(directory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*")) if p.is_file()
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 4])
async def test_sigterm_under_load_loses_nothing(server_factory, workers):
    server: ServerProcess = server_factory(workers=workers, rate_limit=0)
    load = Workload(server)
    await load.prepare()
    idle = [await load.open(f"idle{n}") for n in range(12)]
    codes: list[int] = []

    def stop() -> None:
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)

    await load.crash_after(800, stop)
    assert server.process is not None
    codes.append(await asyncio.to_thread(server.process.wait, 15))
    assert codes == [0], server.log[-3000:]
    delays = []
    for client in idle:
        code, reason = await client.closed()
        assert code == 1012
        found = re.fullmatch(r"retry_after_ms=(\d+)", reason)
        assert found
        delays.append(int(found[1]))
    assert len(set(delays)) > 1, "every client told to come back at the same moment"
    await asyncio.to_thread(server.start)
    await load.settle_and_check()
    assert "Traceback" not in server.log


@pytest.mark.parametrize("workers", SEVERAL_IF_LONG)
async def test_a_stop_with_idle_clients_is_quick_and_restart_keeps_all(server_factory, workers):
    server: ServerProcess = server_factory(workers=workers)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    await client.say("@a", "kept")
    assert await asyncio.to_thread(server.terminate) == 0
    assert (await client.closed())[0] == 1012
    await asyncio.to_thread(server.start)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    assert [m["content"] for m in await client.all_history("@a")] == ["kept"]
    await client.close()


HANGS = """
import os, time
from hongyan.journal.sqlite import SqliteJournal
append = SqliteJournal._append
def hang(self, job):
    while os.path.exists({flag!r}):
        time.sleep(0.1)
    append(self, job)
SqliteJournal._append = hang
"""


@pytest.fixture(params=[1, 2])
def hanging(server_factory, tmp_path, request):
    """A server whose journal does not come back while the file `flag` is there."""
    flag, faults = tmp_path / "hang", tmp_path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(HANGS.format(flag=str(flag)))
    server: ServerProcess = server_factory(
        env={"PYTHONPATH": f"{faults}:{SOURCES}"},
        shutdown_timeout_s=2,
        login_timeout_ms=60_000,
        workers=request.param,
    )
    return server, flag


async def test_a_disk_that_hangs_does_not_keep_the_process(hanging):
    server, flag = hanging
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    await client.say("@a", "kept")
    flag.touch()
    await client.post("@a", "never acknowledged")
    assert await asyncio.to_thread(server.terminate, 10) == 75
    assert "shutdown_timeout_s" in server.log
    client.abort()
    flag.unlink()
    await asyncio.to_thread(server.start)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    assert "kept" in [m["content"] for m in await client.all_history("@a")]
    await client.close()


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_second_signal_ends_at_once(server_factory, tmp_path, workers):
    server: ServerProcess = server_factory(workers=workers, shutdown_timeout_s=60)
    client = await Outsider.connect(server.url)  # which does not read: its close is waited for
    await client.login(server.token("a"))
    client.ws.transport.pause_reading()
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    while "stopping" not in server.log:
        await asyncio.sleep(0.02)
    await asyncio.sleep(REPEAT_S)  # so that it is not the first one, delivered twice
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.process.wait, 4) == 128 + signal.SIGTERM
    client.abort()


def refused_start(server: ServerProcess) -> str:
    before = len(server.log)
    process = server.spawn()
    code = process.wait(30)
    text = server.log[before:]
    assert code not in (0, -signal.SIGABRT, -signal.SIGSEGV), text
    assert "Traceback" not in text, text
    assert str(server.data_dir) in text or "data" in text.lower(), text
    return text


async def test_a_second_server_on_the_directory_is_refused(server_factory, tmp_path):
    first: ServerProcess = server_factory()
    second = server_factory(root=tmp_path / "second", started=False, data_dir=first.data_dir)
    refused_start(second)
    client = await Outsider.connect(first.url)
    await client.login(first.token("a"))
    await client.say("@a", 1)
    await client.close()


@pytest.mark.parametrize("damage", ["journal head", "journal body", "journal gone", "store gone", "manifest"])
async def test_a_damaged_directory_is_refused_and_left_alone(server_factory, damage):
    from .test_kill9 import journal_of

    server: ServerProcess = server_factory(rate_limit=0)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    for start in range(0, 400, 100):
        keys = [await client.post("@a", "x" * 500) for _ in range(100)]
        for key in keys:
            await client.reply(key)
        assert start >= 0
    await client.close()
    journal = journal_of(server)
    manifest = next(server.data_dir.rglob("MANIFEST-*"))
    assert await asyncio.to_thread(server.terminate) == 0
    match damage:
        case "journal head":
            body = bytearray(journal.read_bytes())
            body[:64] = os.urandom(64)
            journal.write_bytes(body)
        case "journal body":
            body = bytearray(journal.read_bytes())
            body[4096:] = os.urandom(len(body) - 4096)
            journal.write_bytes(body)
        case "journal gone":
            for file in journal.parent.glob(journal.name + "*"):
                file.unlink()
        case "store gone":
            for file in manifest.parent.iterdir():
                file.unlink()
        case "manifest":
            for file in manifest.parent.glob("MANIFEST-*"):
                file.write_bytes(os.urandom(200))
    before = {
        k: v for k, v in contents(server.data_dir).items() if "LOG" not in k and "LOCK" not in k.upper()
    }
    if damage == "store gone":
        # The store is a view: while the journal still holds everything it may be built again. Nothing
        # acknowledged may be missing then, and where it cannot be built the start is refused.
        process = server.spawn()
        try:
            assert await asyncio.to_thread(process.wait, 5) != 0
        except subprocess.TimeoutExpired:
            client = await Outsider.connect(server.url)
            await client.login(server.token("a"))
            assert len(await client.all_history("@a")) == 400
            await client.close()
        return
    refused_start(server)
    after = contents(server.data_dir)
    assert {k: after.get(k) for k in before} == before


async def test_a_foreign_directory_is_refused_and_left_alone(server_factory, tmp_path):
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"not ours")
    server = server_factory(root=tmp_path / "other", started=False, data_dir=foreign)
    refused_start(server)
    assert contents(foreign) == {"holiday.jpg": hashlib.sha256(b"not ours").hexdigest()}


def modes(directory: Path) -> set[tuple[bool, str]]:
    return {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in directory.rglob("*")}


async def test_messages_are_nobody_elses_whatever_the_umask(server_factory, tmp_path):
    (tmp_path / "there").mkdir(mode=0o755)  # made by hand, as people do
    umask = os.umask(0o022)
    try:
        server: ServerProcess = server_factory(data_dir=tmp_path / "there")
    finally:
        os.umask(umask)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    await client.say("@a", 1)
    await client.close()
    assert modes(server.data_dir) == {(False, "0o600"), (True, "0o700")}
    assert "others can read" not in server.log
    (server.data_dir / "journal.db").chmod(0o644)
    assert await asyncio.to_thread(server.terminate) == 0
    await asyncio.to_thread(server.start)
    assert "others can read" in server.log
    assert str(server.data_dir / "journal.db") in server.log


def test_wrong_settings_name_their_source_and_exit_2(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("HONGYAN_")} | {"PYTHONPATH": str(SOURCES)}
    config = tmp_path / "hongyan.toml"
    config.write_text('port = "many"\n')

    def run(*flags: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hongyan", "serve", "--data-dir", str(tmp_path / "d"), *flags]
        return subprocess.run(
            command, env=env | more, capture_output=True, text=True, timeout=30, check=False
        )

    for result, source in (
        (run("--port", "many"), "--port"),
        (run(HONGYAN_PORT="many"), "HONGYAN_PORT"),
        (run("--config", str(config)), "hongyan.toml"),
        (run(HONGYAN_NODE_ID="5000"), "HONGYAN_NODE_ID"),
    ):
        assert result.returncode == 2, result.stderr
        assert source in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "d").exists()
