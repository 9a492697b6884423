"""Who watches a server sees it alive while it replays its journal, and sends nobody to it yet."""

from __future__ import annotations

import asyncio
import json
import time
from email.message import Message

import pytest

from server_process import SOURCES, ServerProcess, ask

from .workload import SEVERAL_IF_LONG

pytestmark = pytest.mark.slow

SLOW_REPLAY = """
import asyncio, os
from hongyan.engine import engine
recover = engine.recover
async def slow(*arguments):
    while os.path.exists({flag!r}):
        await asyncio.sleep(0.05)
    return await recover(*arguments)
engine.recover = slow
"""


def until_listening(server: ServerProcess) -> tuple[int, Message, bytes]:
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask(f"{server.http}/healthz")
        except OSError:
            assert time.monotonic() < deadline, server.log[-2000:]
            time.sleep(0.05)  # there is no event to wait for in another process's start


@pytest.mark.parametrize("workers", SEVERAL_IF_LONG)
async def test_health_answers_during_the_replay(server_factory, tmp_path, workers):
    flag, faults = tmp_path / "replaying", tmp_path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(SLOW_REPLAY.format(flag=str(flag)))
    flag.touch()
    server: ServerProcess = server_factory(
        workers=workers, started=False, env={"PYTHONPATH": f"{faults}:{SOURCES}"}
    )
    server.spawn()
    assert (await asyncio.to_thread(until_listening, server))[0] == 200
    assert (await asyncio.to_thread(ask, f"{server.http}/readyz"))[0] == 503
    status, _, text = await asyncio.to_thread(ask, f"{server.http}/metrics")
    assert status == 200
    assert b"hongyan_store_offset" in text
    body = json.dumps({"user_id": "alice", "password": "a password"}).encode()
    for path in ("register", "login"):
        status, headers, answer = await asyncio.to_thread(ask, f"{server.http}/api/v1/auth/{path}", body)
        assert status == 503
        assert headers["Content-Type"] == "application/problem+json"
        assert headers["Retry-After"]
        assert json.loads(answer)["code"] == "unavailable"
    flag.unlink()
    while (await asyncio.to_thread(ask, f"{server.http}/readyz"))[0] != 200:
        await asyncio.sleep(0.02)
    assert (await asyncio.to_thread(ask, f"{server.http}/api/v1/auth/register", body))[0] == 201
    assert await asyncio.to_thread(server.terminate) == 0


@pytest.mark.parametrize("workers", SEVERAL_IF_LONG)
async def test_a_stop_during_the_replay_is_a_stop(server_factory, tmp_path, workers):
    flag, faults = tmp_path / "replaying", tmp_path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(SLOW_REPLAY.format(flag=str(flag)))
    flag.touch()
    server: ServerProcess = server_factory(
        workers=workers, started=False, env={"PYTHONPATH": f"{faults}:{SOURCES}"}
    )
    server.spawn()
    await asyncio.to_thread(until_listening, server)
    assert await asyncio.to_thread(server.terminate) == 0
    assert "Traceback" not in server.log
