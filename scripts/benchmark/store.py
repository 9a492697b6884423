"""What the store costs, in microseconds a message or a call: `python scripts/benchmark/store.py [DIR]`.

Prints JSON. Messages go to random conversations (the worst case for runs of messages: one row each) in
batches as the engine makes them; `flush` is the loop's time in writing them down, `get_threads` how much longer
two threads take than one for the same number of look-ups each (2 means that the interpreter lock is held).
Nothing here asserts: it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hongyan.protocol.state import Changes, Conversation, Membership, Message
from hongyan.store.rocks import RocksStore

MESSAGES, BATCH, CONVERSATIONS = 200_000, 500, 100_000
CONTENT = b'"' + b"x" * 100 + b'"'


def batches(chance: random.Random) -> list[tuple[int, Changes]]:
    last: dict[str, int] = {}
    made = []
    for end in range(BATCH, MESSAGES + 1, BATCH):
        batch = Changes()
        for n in range(end - BATCH, end):
            number = chance.randrange(CONVERSATIONS)
            name, sender = f"user{number}|user{number + 7}", f"user{number}"
            seq = last[name] = last.get(name, 0) + 1
            message = Message(name, seq, n << 22, n, sender, f"key-{n}", "text", CONTENT)
            batch.messages.append(message)
            batch.conversations[name] = Conversation(seq, n)
        made.append((end, batch))
    return made


def each(calls: int, call: Callable[[int], object]) -> float:
    begin = time.perf_counter()
    for n in range(calls):
        call(n)
    return round((time.perf_counter() - begin) * 1e6 / calls, 3)


async def measure(path: Path) -> dict[str, float]:
    chance = random.Random(1)
    found: dict[str, float] = {}
    # no timer within the measurement, and a tail that holds it all: apply and flush are told apart
    store = RocksStore.open(
        path, "benchmark", cache_conversations=50_000, tail_messages=10 * MESSAGES, tail_bytes=1 << 40,
        flush_interval_ms=3_600_000, fatal=lambda error: sys.exit(str(error)),
    )  # fmt: skip
    applied = flushed = 0.0
    worst = 0.0
    work = batches(chance)
    for place in range(0, len(work), 40):  # 20,000 messages at a time, as 200 ms of a busy server
        begin = time.perf_counter()
        for offset, batch in work[place : place + 40]:
            store.apply(offset, batch)
        applied += time.perf_counter() - begin
        while store.on_disk < store.offset:
            begin = time.perf_counter()
            store._write_unit()
            took = time.perf_counter() - begin
            flushed += took
            worst = max(worst, took)
    found["apply_us_per_message"] = round(applied * 1e6 / MESSAGES, 3)
    found["flush_us_per_message"] = round(flushed * 1e6 / MESSAGES, 3)
    found["flush_longest_slice_ms"] = round(worst * 1e3, 1)
    found["rows_per_message"] = round(store.flushed_rows / MESSAGES, 2)
    begin = time.perf_counter()
    await store.sync()
    found["sync_ms"] = round((time.perf_counter() - begin) * 1e3, 1)
    names = [f"user{n}|user{n + 7}" for n in chance.choices(range(CONVERSATIONS), k=20_000)]
    store.conversation(names[0])
    found["conversation_cached_us"] = each(20_000, lambda n: store.conversation(names[0]))
    found["conversation_mixed_us"] = each(20_000, lambda n: store.conversation(names[n]))
    found["conversation_absent_us"] = each(20_000, lambda n: store.conversation(f"nobody{n}"))
    store.apply(MESSAGES + 1, changes_of_a_group())
    found["membership_cached_us"] = each(20_000, lambda n: store.membership("user1", "#team"))
    known = [row for _, batch in work[:40] for row in batch.messages]
    found["find_us"] = each(
        len(known), lambda n: store.find(known[n].sender, known[n].conversation, known[n].key)
    )
    found["find_absent_us"] = each(20_000, lambda n: store.find("user1", names[n], f"other{n}"))
    found["messages_one_us"] = each(20_000, lambda n: store.messages(names[n], 1, 1, 1))
    found["messages_newest_us"] = each(20_000, lambda n: store.messages(names[n], 1, 1000, 50, newest=True))
    # In conversations of 64 messages, a row each, that nobody has resent in lately: all of them are read, once.
    for size in (100, 60_000):
        fresh = [f"#{size}.{n}" for n in range(50)]
        for seq in range(1, 65):
            store.apply(store.offset + 1, one_each(fresh, seq, size))
            while store.on_disk < store.offset:
                store._write_unit()
        for again in ("", "_again"):
            found[f"find_absent_in_64_of_{size}_bytes{again}_us"] = each(
                len(fresh),
                lambda n, fresh=fresh: store.find("user1", fresh[n], "other"),  # type: ignore[misc]
            )
    get = store._get
    keys = [b"c" + name.encode() for name in names]

    def look_up() -> None:
        for key in keys:
            get(key)

    look_up()
    begin = time.perf_counter()
    look_up()
    alone = time.perf_counter() - begin
    found["get_us"] = round(alone * 1e6 / len(keys), 3)
    threads = [threading.Thread(target=look_up) for _ in range(2)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found["get_threads"] = round((time.perf_counter() - begin) / alone, 2)
    await store.close()
    return found


def one_each(names: list[str], seq: int, size: int) -> Changes:
    batch = Changes()
    content = b'"' + b"x" * size + b'"'
    for name in names:
        batch.messages.append(Message(name, seq, seq << 22, seq, "user1", f"key-{seq}", "text", content))
        batch.conversations[name] = Conversation(seq, seq)
    return batch


def changes_of_a_group() -> Changes:
    batch = Changes()
    batch.memberships["user1", "#team"] = Membership(1, 0, 1, {1: 5})
    return batch


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        print(json.dumps(asyncio.run(measure(Path(directory) / "store")), indent=2))
