"""Several processes: what the death of each of them costs, and what it must not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from outsider import Outsider
from server_process import SOURCES, ServerProcess, alive, ask

from .workload import SEVERAL_IF_LONG, Workload

pytestmark = pytest.mark.slow

# The engine dies with the store's commit done and nothing of it told, once, when the file `flag` is there.
FAILPOINT = """
import os, signal
from hongyan.link.router import Router
tell = Router.tell
def dies(self, told, first=0):
    told = list(told)
    if os.path.exists({flag!r}) and any(session for session, _, _ in told):
        os.unlink({flag!r})
        os.kill(os.getpid(), signal.SIGKILL)
    tell(self, told, first)
Router.tell = dies
"""


@pytest.fixture
async def enter() -> AsyncIterator[Callable[..., Any]]:
    """`await enter(server, "alice")`: a logged-in client of any server."""
    opened: list[Outsider] = []

    async def log_in(server: ServerProcess, user: str, device: str = "d1") -> Outsider:
        client = await Outsider.connect(server.url)
        opened.append(client)
        await client.login(server.token(user), device)
        return client

    yield log_in
    for client in opened:
        await client.close()


async def crowd(enter: Callable[..., Any], server: ServerProcess, count: int) -> list[Outsider]:
    """So many users' clients: over two gateways with near certainty."""
    return [await enter(server, f"u{n}") for n in range(count)]


def kill(server: ServerProcess, name: str) -> int:
    pid = server.processes()[name]
    os.kill(pid, signal.SIGKILL)
    return pid


async def until_back(server: ServerProcess, name: str, dead: int) -> None:
    async with asyncio.timeout(20):
        while server.processes().get(name, dead) == dead or not await asyncio.to_thread(server.ready):
            await asyncio.sleep(0.02)  # there is no event to wait for in another process


@pytest.fixture
def failing(server_factory, tmp_path):
    flag, faults = tmp_path / "die", tmp_path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(FAILPOINT.format(flag=str(flag)))
    return server_factory(env={"PYTHONPATH": f"{faults}:{SOURCES}"}, workers=2, rate_limit=0), flag


async def test_what_was_stored_and_not_told_is_told(failing, enter):
    server, flag = failing
    clients = await crowd(enter, server, 8)
    for client in clients:
        await client.ask("create_group" if client is clients[0] else "join_group", {"group": "#g"})
    for client in clients:
        await client.barrier()
        client.unread.clear()
    for to in ("#g", "@u0"):
        flag.touch()
        keys = [await client.post(to, n) for n, client in enumerate(clients)]
        seqs = []
        for client, key in zip(clients, keys, strict=True):
            answer = await client.reply(key)
            assert answer["type"] == "ack", answer
            assert not answer["data"]["duplicate"] or to == "#g"
            seqs.append(answer["data"]["seq"])
        assert not flag.exists(), "the engine did not die"
        if to == "#g":
            assert sorted(seqs) == list(range(1, 9))
            for client, own in zip(clients, seqs, strict=True):
                others = [await client.push("message", conversation="#g") for _ in range(7)]
                assert [m["data"]["seq"] for m in others] == [seq for seq in range(1, 9) if seq != own]
        else:
            for n in range(1, 8):
                assert (await clients[0].push("message", conversation=f"@u{n}"))["data"]["content"] == n
    assert server.log.count("a process died") == 2


async def test_a_dead_engine_costs_no_connection_no_message_and_no_order(server_factory, rounds, enter):
    server = server_factory(workers=2, rate_limit=0)
    load = Workload(server)
    await load.prepare()
    watchers = [await enter(server, user, "watching") for user in load.users]
    seen: list[list[tuple[str, int]]] = [[] for _ in watchers]

    async def watch(client: Outsider, pushes: list[tuple[str, int]]) -> None:
        while True:
            envelope = await client.receive(60)
            if envelope["type"] == "message":
                pushes.append((envelope["data"]["conversation"], envelope["data"]["seq"]))

    watching = [asyncio.create_task(watch(*each)) for each in zip(watchers, seen, strict=True)]
    senders = [asyncio.create_task(load.sender(user)) for user in load.users]
    for _ in range(rounds):
        goal = len(load.acked) + 700
        async with asyncio.timeout(60):
            while len(load.acked) < goal:
                await asyncio.sleep(0.005)
        await until_back(server, "engine", kill(server, "engine"))
    goal = len(load.acked) + 500
    async with asyncio.timeout(60):
        while len(load.acked) < goal:
            await asyncio.sleep(0.005)
    for task in (*senders, *watching):
        assert not task.done(), f"a connection was lost: {task}"
    for task in senders:
        task.cancel()
    await asyncio.gather(*senders, return_exceptions=True)
    await load.settle_and_check()
    for client in watchers:
        await client.send("heartbeat")
    async with asyncio.timeout(20):
        while any(sorted(pushes) != sorted(set(pushes)) or gaps(pushes) for pushes in seen):
            await asyncio.sleep(0.1)
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    assert "Traceback" not in server.log, server.log[-5000:]


def gaps(pushes: list[tuple[str, int]]) -> bool:
    """Whether a conversation's pushes are not 1, 2, 3, … or n, n + 1, … in this order."""
    last: dict[str, int] = {}
    for conversation, seq in pushes:
        if seq != last.get(conversation, seq - 1) + 1:
            return True
        last[conversation] = seq
    return False


async def test_a_dead_gateway_costs_its_own_connections(server_factory, enter):
    server = server_factory(workers=2, presence_offline_delay_ms=300)
    clients = await crowd(enter, server, 12)
    dead = kill(server, "gateway-1")
    codes = await asyncio.gather(*[ended(client) for client in clients])
    assert set(codes) == {None, 1006}, "all on one gateway, or others were hit"
    alive_ones = [client for client, code in zip(clients, codes, strict=True) if code is None]
    gone = [f"@u{n}" for n, code in enumerate(codes) if code is not None]
    watcher = alive_ones[0]
    states = (await watcher.ask("presence", {"users": gone, "subscribe": True}))["states"]
    for user in gone:
        if states[user]["online"]:
            while (await watcher.push("presence"))["data"]["states"].get(user, {"online": True})["online"]:
                pass
    await until_back(server, "gateway-1", dead)
    for user in gone:
        again = await enter(server, user[1:])
        await again.say(f"@u{clients.index(watcher)}", "back")
        assert (await watcher.push("message", conversation=user))["data"]["content"] == "back"


@pytest.mark.skipif(SEVERAL_IF_LONG == [1], reason="many restarts: in the long run")
async def test_whatever_dies_again_and_again_having_been_up_is_started_again(server_factory, enter):
    server = server_factory(workers=2)
    for name in ("gateway-2", "engine") * 6:
        await until_back(server, name, kill(server, name))
    await (await enter(server, "a")).say("@a", 1)


async def ended(client: Outsider) -> int | None:
    """The close code, None where the connection lives."""
    try:
        await asyncio.wait_for(client.barrier(), 10)
    except Exception:
        return (await client.closed())[0]
    return None


async def test_all_but_the_supervisor_killed_at_once(server_factory, rounds):
    server = server_factory(workers=2, rate_limit=0)
    load = Workload(server)
    await load.prepare()
    for number in range(rounds):
        dead = server.processes()
        names = sorted(dead, reverse=bool(number % 2))

        def shoot(names: list[str] = names) -> None:
            for name in names:
                kill(server, name)

        await load.crash_after(600, shoot)
        for name, pid in dead.items():
            await until_back(server, name, pid)
        await load.settle_and_check()


async def test_nothing_outlives_a_killed_supervisor(server_factory, enter):
    server = server_factory(workers=2)
    client = await enter(server, "a")
    await client.say("@a", "kept")
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    assert (await client.closed())[0] == 1012
    async with asyncio.timeout(15):
        while alive(server.process.pid):
            await asyncio.sleep(0.02)
    await asyncio.to_thread(server.start)
    assert [m["content"] for m in await (await enter(server, "a")).all_history("@a")] == ["kept"]


async def test_a_device_is_replaced_across_gateways_and_what_it_acknowledged_counts(server_factory, enter):
    server = server_factory(workers=2, rate_limit=0)
    sender = await enter(server, "s")
    older = await enter(server, "a")
    for n in range(1, 13):
        await sender.say("@a", n)
        await older.push("message", content=n)
        await older.send("ack", {"conversation": "@s", "seq": n})
        await older.ask("conversations")  # until it is answered, a login through another gateway may overtake
        newer = await enter(server, "a")
        assert await newer.sync() == [], "it was acknowledged before"
        assert (await older.closed())[0] == 4409
        older = newer
    assert (await metrics(server))["hongyan_replaced_total"] == 12


async def metrics(server: ServerProcess) -> dict[str, float]:
    text = (await asyncio.to_thread(ask, f"{server.http}/metrics"))[2].decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line[:1] != "#"]
    return {name: float(value) for name, _, value in lines}


async def test_metrics_are_of_all_processes_and_never_go_back(server_factory, enter):
    server = server_factory(workers=2)
    clients = await crowd(enter, server, 10)
    for client in clients:
        await client.say("@u0", "x")
    said = await metrics(server)
    assert said["hongyan_connections"] == said["hongyan_sessions"] == 10
    assert said["hongyan_logins_total"] == said["hongyan_acks_sent_total"] == 10
    assert said["hongyan_messages_accepted_total"] == 10
    assert said["hongyan_pushes_total"] == 9
    dead = kill(server, "gateway-1")
    await until_back(server, "gateway-1", dead)
    after = await metrics(server)
    assert after["hongyan_connections"] == after["hongyan_sessions"] < 10
    for name in ("logins", "acks_sent", "messages_accepted", "pushes", "requests"):
        assert after[f"hongyan_{name}_total"] >= said[f"hongyan_{name}_total"], name


@pytest.mark.parametrize("workers", SEVERAL_IF_LONG)
async def test_a_port_in_use_is_said(server_factory, tmp_path, workers):
    first = server_factory(workers=2)
    second = server_factory(root=tmp_path / "second", started=False, workers=workers)
    for port in ("port", "http_port"):
        free = getattr(second, port)
        setattr(second, port, getattr(first, port))
        assert second.spawn().wait(30) == 1
        assert "cannot listen for" in second.log
        assert f":{getattr(first, port)}: " in second.log
        setattr(second, port, free)
    assert "Traceback" not in second.log


async def test_what_cannot_go_on_ends_the_server_with_its_code_and_text(server_factory, tmp_path):
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"not ours")
    server = server_factory(started=False, data_dir=foreign, workers=2)
    assert server.spawn().wait(20) == 1
    assert "is not empty and not a data directory" in server.log
    assert "Traceback" not in server.log
    assert not alive(server.process.pid)


async def test_a_path_too_long_for_a_socket_is_no_obstacle(server_factory, tmp_path, enter):
    temporary, deep = tmp_path / "tmp", tmp_path / ("d" * 100)
    temporary.mkdir()
    server = server_factory(data_dir=deep, workers=2, env={"TMPDIR": str(temporary)})
    await (await enter(server, "a")).say("@a", 1)
    assert len(list(temporary.glob("*/link"))) == 1
    assert await asyncio.to_thread(server.terminate) == 0
    assert list(temporary.iterdir()) == []


async def test_connections_are_spread_and_every_process_says_who_it_is(server_factory, enter):
    server = server_factory(workers=3)
    await crowd(enter, server, 24)
    assert set(server.processes()) == {"engine", "gateway-1", "gateway-2", "gateway-3"}
    for name in server.processes():
        assert f'"process.name": "{name}"' in server.log
    modes = {path.name: path.stat().st_mode & 0o777 for path in server.data_dir.iterdir() if path.is_socket()}
    assert modes == {"link": 0o600}
