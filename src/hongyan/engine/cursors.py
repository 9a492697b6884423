"""Delivery cursors on their way to the journal.

An acknowledgement is a dict update; within a second what has gathered becomes `Cursors` records, so a
crash sets a cursor back by a second at most (protocol.md, `ack`), and an acknowledgement costs no fsync
of its own. What is gathered belongs to the device, whichever of its sessions acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from hongyan.engine.sessions import Owner
from hongyan.errors import Refused
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import Cursors

TICKS = 8  # what a device acknowledged waits this many ticks (of 100 ms) at most
MAX_ENTRIES = 500  # of either kind in one record
ENTRY_WEIGHT = 150  # bytes of one in memory


class CursorQueue:
    """By device, longest waiting first; also of devices that are gone."""

    def __init__(
        self, submit: Callable[[Cursors, int], Coroutine[Any, Any, Outcome]], new_id: Callable[[], int]
    ) -> None:
        self._submit = submit
        self._new_id = new_id
        # conversation key -> seq; the inner ones are to be raised in place, before anything else runs
        self.gathered: dict[Owner, dict[str, int]] = {}
        self._flying: dict[Owner, dict[str, int]] = {}  # the same, in the record being committed
        self._seen: dict[Owner, int] = {}
        self._writing = asyncio.Lock()  # one record at a time: there is one `_flying`

    def __len__(self) -> int:
        return len(self.gathered) + len(self._seen)

    def of(self, owner: Owner) -> dict[str, int]:
        """What the device has gathered."""
        gathered = self.gathered.get(owner)
        if gathered is None:
            gathered = self.gathered[owner] = {}
        return gathered

    def acked(self, owner: Owner, conversation: str) -> int:
        """What the device acknowledged and the store may not have yet; 0: nothing."""
        gathered, flying = self.gathered.get(owner), self._flying.get(owner)
        return max(
            gathered.get(conversation, 0) if gathered else 0, flying.get(conversation, 0) if flying else 0
        )

    def seen(self, user: str, device: str, at: int) -> None:
        """The device was used at `at` ms."""
        self._seen[user, device] = at

    async def flush(self, now: int, *, all_of_them: bool = False) -> None:
        """Write the share of one tick, or everything. Refusals keep what was gathered for the next time."""
        count = len(self.gathered) if all_of_them else len(self.gathered) // TICKS + 1
        seen = len(self._seen) if all_of_them else MAX_ENTRIES
        with suppress(Refused):
            await self._write(list(islice(self.gathered, count)), list(islice(self._seen, seen)), now)

    async def flush_user(self, user: str, devices: Iterable[str], now: int) -> None:
        """Write what the user's devices have gathered and when they were used: a new device starts where the
        furthest stands, and the one unused for longest is forgotten for it. Raises Refused."""
        owners = [(user, device) for device in devices]
        await self._write(owners, owners[:], now)

    async def _write(self, owners: list[Owner], seen_owners: list[Owner], now: int) -> None:
        owners.reverse()
        async with self._writing:
            while owners or seen_owners:
                acks = list(self._take(owners))
                batch, seen_owners = seen_owners[:MAX_ENTRIES], seen_owners[MAX_ENTRIES:]
                seen = [(*owner, self._seen.pop(owner)) for owner in batch if owner in self._seen]
                if not acks and not seen:
                    continue
                try:
                    record = Cursors(self._new_id(), now, acks, seen)
                    count = sum([len(of) for _, _, of in acks]) + len(seen)
                    await self._submit(record, ENTRY_WEIGHT * count)
                except BaseException:  # cancelled, too: it may be written, and again does no harm
                    self._take_back(seen)
                    raise
                self._flying = {}

    def _take(self, owners: list[Owner]) -> Iterator[tuple[str, str, dict[str, int]]]:
        """Move one record's share of the last of `owners` from gathered to flying."""
        room = MAX_ENTRIES
        while owners and room:
            owner = owners.pop()
            acks = self.gathered.pop(owner, None)
            if not acks:
                continue
            if len(acks) > room:
                rest = dict(islice(acks.items(), room, None))
                self.gathered[owner] = rest
                owners.append(owner)
                acks = dict(islice(acks.items(), room))
            room -= len(acks)
            self._flying[owner] = acks
            yield *owner, acks

    def _take_back(self, seen: Iterable[tuple[str, str, int]]) -> None:
        for user, device, at in seen:
            self._seen.setdefault((user, device), at)
        flying, self._flying = self._flying, {}
        for owner, acks in flying.items():
            gathered = self.of(owner)
            for conversation, seq in acks.items():
                gathered[conversation] = max(seq, gathered.get(conversation, 0))
