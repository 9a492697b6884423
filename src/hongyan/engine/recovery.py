"""Start-up: bring the store to the journal's end; rebuild the duplicate window, and what devices acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from hongyan.engine.sequencer import Sequencer
from hongyan.errors import DataDirectoryError
from hongyan.journal.base import Entry, Journal
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import Acked, Cursors
from hongyan.store.base import Store


class Recovered(NamedTuple):
    """`replayed` records, the newest log time (ms) and the highest Snowflake id in the journal."""

    replayed: int
    last_log_ms: int
    highest_id: int


async def recover(
    journal: Journal, store: Store, sequencer: Sequencer, fold: Callable[[Entry], list[Outcome]],
    restore: Callable[[Acked | Cursors, int], None],
) -> Recovered:  # fmt: skip
    """Fold what the journal has and the store has not; `restore` is given, in order, what moves cursors.
    Raises DataDirectoryError where they do not fit."""
    if store.offset > journal.last:
        raise DataDirectoryError(
            f"the store is ahead of the journal (record {store.offset} of {journal.last}): "
            "a part of the data directory was lost or put back; restore both from one backup"
        )
    if store.offset + 1 < journal.first and journal.last:
        raise DataDirectoryError(
            f"the journal begins at record {journal.first} but the store ends at {store.offset}: "
            "a part of the data directory was lost or put back; restore both from one backup"
        )
    replayed = last_log_ms = highest_id = 0
    for entry in journal.read(0):
        await asyncio.sleep(0)  # health and signals are served meanwhile
        last_log_ms = max(last_log_ms, entry.log_ms)
        highest_id = max(highest_id, max(record.id for record in entry.records))
        for record in entry.records:
            if isinstance(record, Acked | Cursors):
                restore(record, entry.first)
        if entry.last <= store.offset:
            sequencer.remember(entry.records, entry.first, entry.log_ms, journal.first > 1)
            continue
        if entry.first <= store.offset:
            raise DataDirectoryError(f"the store ends inside the journal's batch at record {entry.first}")
        fold(entry)
        replayed += len(entry.records)
        if store.full:
            await store.sync()
    return Recovered(replayed, last_log_ms, highest_id)
