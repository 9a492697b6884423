"""What a restart must find again, and what must end the process."""

from __future__ import annotations

import asyncio
import os
import resource
import time

import pytest
from websockets.exceptions import ConnectionClosed

from hongyan.journal.sqlite import SqliteJournal
from hongyan.protocol.records import Register
from outsider import Outsider
from server_process import ServerProcess

from .workload import SEVERAL_IF_LONG

pytestmark = pytest.mark.slow


async def test_a_resend_without_retry_is_known_after_a_restart(server_factory) -> None:
    server: ServerProcess = server_factory()
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    first = await client.say("@a", "once", "key-1")
    assert await asyncio.to_thread(server.terminate) == 0  # the store has it: nothing is left to replay
    await asyncio.to_thread(server.start)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    again = await client.say("@a", "twice", "key-1")
    assert (again["data"]["duplicate"], again["message_id"]) == (True, first["message_id"])
    await client.close()


async def test_ids_go_on_past_the_journals_also_without_the_clock_mark(server_factory) -> None:
    server: ServerProcess = server_factory()
    assert await asyncio.to_thread(server.terminate) == 0
    mark = server.data_dir / "clock"
    mark.unlink()
    client = await Outsider.connect((await asyncio.to_thread(server.start)).url)
    await client.login(server.token("a"))
    seen = int((await client.say("@a", 1))["message_id"])
    await client.close()
    assert await asyncio.to_thread(server.terminate) == 0
    tomorrow = seen + (86_400_000 << 22)  # issued while the clock was a day ahead
    journal = SqliteJournal.open(server.data_dir / "journal.db")
    await journal.append([Register(tomorrow, journal_ms(), "ahead", "x")], journal_ms())
    await journal.close()
    mark.unlink()
    await asyncio.to_thread(server.start)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    assert int((await client.say("@a", 2))["message_id"]) > tomorrow
    await client.close()


def journal_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize("workers", SEVERAL_IF_LONG)
async def test_an_io_error_that_is_no_full_disk_ends_the_process_and_loses_nothing(
    server_factory, workers
) -> None:
    server: ServerProcess = server_factory(workers=workers, rate_limit=0)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    assert server.process is not None
    # No file of the process may grow past this size any more: EFBIG, which is not ENOSPC.
    size = (server.data_dir / "journal.db-wal").stat().st_size + 200_000
    resource.prlimit(server.processes()["engine"], resource.RLIMIT_FSIZE, (size, size))
    acked = []
    with pytest.raises(ConnectionClosed):
        for n in range(1000):
            answer = await client.reply(await client.post("@a", f"{n}" + "x" * 5000, f"k{n}"))
            if workers > 1 and answer["type"] == "error":  # its gateway outlives the engine for a moment
                assert answer["data"]["code"] == "unavailable"
                continue
            assert answer["type"] == "ack", answer
            acked.append(answer["data"]["seq"])
    code = await asyncio.to_thread(server.process.wait, 15)
    assert code == os.EX_IOERR
    assert "storage failed" in server.log
    client.abort()
    await asyncio.to_thread(server.start)
    client = await Outsider.connect(server.url)
    await client.login(server.token("a"))
    kept = [m["seq"] for m in await client.all_history("@a")]
    assert acked
    assert kept[: len(acked)] == acked
    await client.close()
