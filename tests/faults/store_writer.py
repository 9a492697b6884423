"""A process that applies batches to a store until it is killed: `python store_writer.py DIRECTORY`.

Prints each offset that `sync` returned. Batches are made from their offset and the model before them, so that
a reader can make the same ones again.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from hongyan.protocol.state import Changes, Membership, User
from hongyan.store.rocks import RocksStore
from memory_store import MemoryStore
from store_rows import changes, message

USERS = [f"u{n}" for n in range(5)]
NAMES = ["#g0", "#g1", "u0|u1", "u1|u2", "u3|u4"]
KEYS = [f"k{n}" for n in range(4)]


def batch(offset: int, before: MemoryStore) -> Changes:
    """The batch that ends at `offset`: always the same."""
    chance = random.Random(offset)
    last: dict[str, int] = {}
    rows = []
    for _ in range(chance.choice([0, 1, 2, 5, 40])):
        name = chance.choice(NAMES)
        of = before.conversation(name)
        last[name] = last.get(name, of.last_seq if of is not None else 0) + 1
        rows.append(
            message(name, last[name], chance.choice(KEYS), chance.choice(USERS), chance.randrange(2, 3000))
        )
    group, user, place = chance.choice(NAMES[:2]), chance.choice(USERS), chance.randrange(1, 6)
    stays = chance.random() < 0.6
    return changes(
        *rows, users={user: User(offset)}, members={(group, place): user if stays else None},
        memberships={(user, group): Membership(1, offset, place) if stays else None},
    )  # fmt: skip


def model_at(offset: int) -> MemoryStore:
    model = MemoryStore()
    for at in range(1, offset + 1):
        model.apply(at, batch(at, model))
    return model


async def main(path: Path) -> None:
    store = RocksStore.open(path, "journal", cache_conversations=2, flush_interval_ms=1, fatal=sys.exit)
    model = model_at(store.offset)
    while True:
        for _ in range(20):
            made = batch(store.offset + 1, model)
            store.apply(store.offset + 1, made)
            model.apply(store.offset, made)
            await asyncio.sleep(0)  # the flusher writes between the batches
        print(await store.sync(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
