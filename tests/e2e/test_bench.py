"""`hongyan bench` against real servers, and against one that loses, doubles and reorders."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from websockets.asyncio.server import ServerConnection, serve

from hongyan.cli.bench import bench
from hongyan.protocol.codec import JSON
from hongyan.protocol.state import Message
from server_process import SOURCES, ServerProcess, ask, free_port

pytestmark = pytest.mark.slow


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hongyan", "bench", *arguments]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCES)}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, env=env, **options
    )


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without a rate limit."""
    server = ServerProcess(tmp_path_factory.mktemp("bench"), rate_limit=0).start()
    yield server
    server.kill()


@pytest.mark.parametrize(
    ("scenario", "flags", "counted"),
    [
        ("direct", ["--warmup", "0.2", "-n", "20", "-d", "1", "--processes", "2"], "acked"),
        ("direct", ["--warmup", "0.2", "-n", "20", "-w", "5", "-d", "1"], "acked"),
        ("direct", ["--warmup", "0.2", "-n", "20", "-r", "200", "-d", "1"], "acked"),
        (
            "group",
            ["--warmup", "0.2", "-n", "20", "--members", "10", "-d", "1", "--processes", "2"],
            "pushed",
        ),
        ("connect", ["-n", "50"], "logins"),
        ("idle", ["--warmup", "0.2", "-n", "20", "-d", "1"], None),
        ("offline", ["-n", "20", "--messages", "30", "--processes", "2"], "synced"),
        ("mixed", ["--warmup", "0.2", "-n", "30", "-d", "2", "--processes", "2"], "acked"),
    ],
)
def test_every_load_runs_and_every_message_arrives(
    fast: ServerProcess, tmp_path: Path, scenario: str, flags: list[str], counted: str | None
) -> None:
    where = ["--url", fast.url, "--data-dir", str(fast.data_dir)]
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    answer = run(scenario, *where, *flags, *files)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads((tmp_path / "r.json").read_bytes())
    assert found["failures"] == []
    if counted is not None:
        assert found["counts"][counted] > 0
        assert found["rate"] > 0
        assert found["server"]["cpu_percent"] >= 0
    assert found["server"]["memory_mb"] > 10
    assert "<svg" in (tmp_path / "r.html").read_text() or counted is None
    if scenario == "offline":
        assert found["counts"]["synced"] == 300


def test_of_a_server_with_workers_all_processes_count(
    tmp_path: Path, server_factory: Callable[..., ServerProcess]
) -> None:
    server = server_factory(rate_limit=0, workers=2)
    where = [
        "--url",
        server.url,
        "--data-dir",
        str(server.data_dir),
        "-n",
        "20",
        "-d",
        "1",
        "--warmup",
        "0.2",
    ]
    answer = run("mixed", *where, "--json", str(tmp_path / "r.json"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    all_processes = server.memory_kib() / 1024
    assert json.loads((tmp_path / "r.json").read_bytes())["server"]["memory_mb"] > 0.4 * all_processes


def test_two_runs_are_compared(fast: ServerProcess, tmp_path: Path) -> None:
    where = ["--url", fast.url, "--data-dir", str(fast.data_dir), "-n", "4", "-d", "0.5", "--warmup", "0"]
    assert run("direct", *where, "--json", str(tmp_path / "a.json")).returncode == 0
    answer = run("direct", *where, "--compare", str(tmp_path / "a.json"), "--html", str(tmp_path / "b.html"))
    assert answer.returncode == 0
    assert "messages a second" in answer.stdout.partition("before")[2]
    assert "Compared" in (tmp_path / "b.html").read_text()


def test_a_rate_limit_is_named(tmp_path: Path, server_factory: Callable[..., ServerProcess]) -> None:
    server = server_factory(rate_limit=5)
    answer = run(
        "direct", "--url", server.url, "--data-dir", str(server.data_dir), "-n", "4", "-w", "4", "-d", "1"
    )
    assert "rate_limited" in answer.stdout
    assert "--rate-limit 0" in answer.stdout
    assert "every acknowledged message came once and in order" in answer.stdout


class Faulty:
    """A server of its own making: direct messages, each acknowledged, and one of them told wrongly."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.seqs: dict[str, int] = {}
        self.users: dict[str, ServerConnection] = {}
        self.numbers = itertools.count(1)

    async def serve(self, ws: ServerConnection) -> None:
        user = ""
        async for text in ws:
            message = json.loads(text)
            kind, data, ref = message["type"], message["data"], message.get("message_id")
            if kind == "login":
                user = jwt.decode(data["token"], options={"verify_signature": False})["sub"]
                self.users[user] = ws
                await ws.send(JSON.envelope("login", {"ref": ref}, 1, 1), text=True)
            elif kind == "presence":
                await ws.send(JSON.envelope("presence", {"ref": ref, "states": {}}, 1, 1), text=True)
            elif kind == "conversations":
                none = {"ref": ref, "conversations": [], "has_more": False, "page": None}
                await ws.send(JSON.envelope("conversations", none, 1, 1), text=True)
            elif kind == "send_message":
                await self.say(ws, user, data["to"][1:], ref, json.dumps(data["content"]).encode())

    async def say(self, ws: ServerConnection, user: str, to: str, ref: str, content: bytes) -> None:
        key = "|".join(sorted((user, to)))
        seq = self.seqs[key] = self.seqs.get(key, 0) + 1
        number = next(self.numbers)
        push = JSON.message(f"@{user}", Message(key, seq, number, 1, user, ref, "text", content), False)
        peer = self.users[to]
        wrong = number == 50
        await ws.send(JSON.ack(ref, f"@{to}", seq, False, 1, number), text=True)
        if wrong and self.fault == "acknowledged twice":
            await ws.send(JSON.ack(ref, f"@{to}", seq, True, 1, number), text=True)
        if wrong and self.fault == "lost":
            return
        if wrong and self.fault == "changed":
            push = push.replace(b'"seq":', b'"seq":1')
        await peer.send(push, text=True)
        if wrong and self.fault == "doubled":
            await peer.send(push, text=True)


@asynccontextmanager
async def faulty(fault: str, tmp_path: Path) -> AsyncIterator[list[str]]:
    """Where it is, as arguments."""
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(jwt.encode({"sub": f"u{n}"}, "x" * 32) for n in range(4)))
    async with serve(Faulty(fault).serve, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield ["--url", f"ws://127.0.0.1:{port}/ws", "--tokens", str(tokens), "-n", "4", "--warmup", "0"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", "every acknowledged message came once and in order"),
        ("lost", "pushes of acknowledged messages are missing"),
        ("doubled", "again or out of order"),
        ("changed", "after a gap"),
        ("acknowledged twice", "got a second answer"),
    ],
)
async def test_a_server_that_breaks_a_promise_fails_the_run(fault: str, said: str, tmp_path: Path) -> None:
    async with faulty(fault, tmp_path) as where:
        process = await asyncio.create_subprocess_exec(
            *command("direct", "-d", "1", *where), env={"PYTHONPATH": str(SOURCES)}, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert said in out.decode()
    assert process.returncode == (0 if fault == "none" else 1)


def test_the_same_tokens_may_be_used_again(fast: ServerProcess, tmp_path: Path) -> None:
    """Conversations go on where they are, and message_ids are new."""
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(fast.token(f"again{n}") for n in range(4)))
    for load in (
        ["direct", "-d", "0.5", "--warmup", "0"],
        ["offline", "--messages", "5"],
        ["mixed", "-d", "1"],
    ):
        for _ in range(2):
            answer = run(*load, "--url", fast.url, "--tokens", str(tokens), "-n", "4")
            assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_server_that_stands_still_is_not_flattered(
    server_factory: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """It stops in the middle and answers after the end: what was due meanwhile is in the latencies."""
    server = server_factory(rate_limit=0)
    assert server.process is not None
    where = ["--url", server.url, "--data-dir", str(server.data_dir), "--json", str(tmp_path / "r.json")]
    with subprocess.Popen(
        command("direct", "-n", "4", "-r", "100", "-d", "2", "--warmup", "0", *where),
        stdout=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCES)},
    ) as process:  # fmt: skip
        try:
            while b"hongyan_sessions 4" not in ask(f"{server.http}/metrics")[2]:
                time.sleep(0.05)  # there is no event to wait for in another process
            time.sleep(0.7)
            os.kill(server.process.pid, signal.SIGSTOP)
            time.sleep(2.5)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert process.wait(30) == 0
    found = json.loads((tmp_path / "r.json").read_bytes())
    assert found["late"] > 50
    assert found["push_ms"]["max"] > 2000 and found["push_ms"]["p90"] > 1000
    assert found["rate"] < 80  # what came after the end is no throughput


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["direct", "--connections", "1"], "--connections"),
        (["direct", "--url", "http://127.0.0.1/"], "--url"),
        (["direct", "--rate", "0"], "--rate"),
        (["direct", "--data-dir", "none-there"], "none-there/secret"),
        (["direct", "--tokens", "none-there"], "--tokens"),
        (["group", "--connections", "30", "--members", "20"], "--members"),
        (["direct", "--compare", "none-there"], "--compare"),
        (["connect", "--processes", "2000"], "--processes"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(bench, arguments)
    assert answer.exit_code == 2
    assert named in answer.stderr


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(jwt.encode({"sub": f"u{n}"}, "x" * 32) for n in range(4)))
    url = f"ws://127.0.0.1:{free_port()}/ws"
    answer = run("direct", "--url", url, "--tokens", str(tokens), "-n", "4")
    assert answer.returncode == 1
    assert url in answer.stderr
    assert "Traceback" not in answer.stderr


def test_ctrl_c_shows_what_there_is_and_leaves_nothing_behind(fast: ServerProcess, tmp_path: Path) -> None:
    """As a terminal does: the whole process group gets it."""
    where = ["--url", fast.url, "--data-dir", str(fast.data_dir), "-n", "4", "-d", "600", "--warmup", "0"]
    flags = ["--json", str(tmp_path / "r.json"), "--processes", "2"]
    with subprocess.Popen(
        command("direct", *where, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCES)}, start_new_session=True,
    ) as process:  # fmt: skip
        while b"hongyan_sessions 4" not in ask(f"{fast.http}/metrics")[2]:
            time.sleep(0.05)  # there is no event to wait for in another process
        time.sleep(2.5)  # whole seconds are kept
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "(interrupted)" in out
    assert json.loads((tmp_path / "r.json").read_bytes())["counts"]["acked"] > 0
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # what multiprocessing keeps for itself ends a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.1)
