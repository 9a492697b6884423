"""A consumer that stops reading: closed with 4430, memory flat, everything by sync."""

from __future__ import annotations

import pytest

from outsider import Outsider

pytestmark = pytest.mark.slow
SIZE = 40_000
WARM_UP, MESSAGES = 1000, 2500


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_slow_consumer_is_closed_and_gets_all_by_sync(server_factory, workers):
    server = server_factory(workers=workers, rate_limit=0, tail_bytes=4 << 20)
    fast = await Outsider.connect(server.url)
    await fast.login(server.token("fast"))
    slow = await Outsider.connect(server.url)
    await slow.login(server.token("slow"))
    for messages in (WARM_UP, MESSAGES):
        slow.ws.transport.pause_reading()  # nobody reads `slow`: the kernel's buffers fill, then the server's
        warm = server.memory_kib()
        for start in range(0, messages, 20):
            keys = [await fast.post("@slow", f"{start + n}" + "z" * SIZE) for n in range(20)]
            for key in keys:
                answer = await fast.reply(key)
                while answer["type"] == "error":  # busy: nothing was stored
                    assert answer["data"]["code"] == "busy", answer
                    answer = await fast.reply(await fast.post("@slow", f"{start}" + "z" * SIZE, key))
        grown = server.memory_kib() - warm
        slow.ws.transport.resume_reading()
        assert (await slow.closed(30))[0] == 4430
        slow = await Outsider.connect(server.url)
        await slow.login(server.token("slow"))
        items = await slow.sync(limit=500)
        assert [m["seq"] for m in items] == list(range(items[0]["seq"], items[0]["seq"] + messages))
        await slow.send("ack", {"conversation": "@fast", "seq": items[-1]["seq"]})
        await slow.barrier()
    # 100 MB went by. The tail (4 MiB), RocksDB's buffers (32 MiB before they are flushed), one outbox may stay.
    assert grown < 60_000, f"{grown} KiB more after 100 MB for a slow consumer"
    await fast.close()
    await slow.close()
