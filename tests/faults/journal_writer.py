"""A process that appends to a journal until it is killed: `python journal_writer.py FILE SEED [unsafe]`.

Prints the last offset of each batch once it was acknowledged. Batches are made from their first offset, so
that a reader knows what must be there. It trims now and then, and checkpoints often. `unsafe` writes without
fsync, to show that a test of power loss sees it.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from hongyan.journal.sqlite import SqliteJournal
from hongyan.protocol.records import Record, Send

CHECKPOINT_BYTES = 256 * 1024
KEPT = 200


def batch(first: int) -> list[Record]:
    """The batch that begins at `first`: 1 to 30 messages of up to 3,000 bytes, always the same."""
    chance = random.Random(first)
    return [
        Send(n, n, "alice", "alice|bob", f"k{n}", "text", b'"' + b"%d" % n * chance.randrange(1, 600) + b'"')
        for n in range(first, first + chance.choice([1, 1, 2, 5, 30]))
    ]


async def main(path: Path, seed: int, unsafe: bool) -> None:
    journal = SqliteJournal.open(path, CHECKPOINT_BYTES)
    if unsafe:
        journal._connection.execute("PRAGMA synchronous = OFF")
    chance = random.Random(seed)
    while True:
        entry = await journal.append(batch(journal.last + 1), journal.last + 1)
        print(entry.last, flush=True)
        if chance.random() < 0.1:
            await journal.trim(journal.last - chance.choice([0, KEPT]))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["unsafe"]))
