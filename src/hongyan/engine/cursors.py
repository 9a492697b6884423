"""Delivery cursors on their way to the journal, and from there to the store's rows.

An acknowledgement is a dict update. A tick later (a tenth of a second) it is in the journal, in an `Acked` record
with all others of that tick: so a crash sets a cursor back by a tick and a commit, and no acknowledgement costs an
fsync of its own (protocol.md, `ack`). The row that it moves is as dear as a message's, and the next acknowledgement
would move it again. So rows are written half a minute later, in `Cursors` records, mostly for many acknowledgements
at once. Until then memory has them; after a crash the journal does, which is not trimmed past them.

What is gathered belongs to the device, whichever of its sessions acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from hongyan.engine.committer import Submit
from hongyan.engine.sessions import Owner
from hongyan.errors import Refused
from hongyan.protocol.outcomes import Noted, Outcome
from hongyan.protocol.records import Acked, Cursors

MAX_ENTRIES = 500  # of either kind in one Cursors record
MAX_NOTED = 5_000  # in one Acked record, which costs the fold nothing
A_COMMIT = 100  # rows that one commit moves without harm; each is 5 to 10 µs of the loop's time
MOST = 1_000  # rows that one commit moves at most, whatever waits
# Entries, 26 MB where a device has twenty, 100 MB where each is another device's: past it rows move before their time,
# as soon as moves are taken (while the server is `busy` there may be more).
MAX_HELD = 200_000
CATCH_UP_MS = 100  # of the time since the last commit, what the next one makes up for
ENTRY_WEIGHT = 150  # bytes of one in memory

Acks = dict[str, int]  # conversation key -> seq
Seen = tuple[str, str, int]  # user, device, ms


class Held:
    """What a device acknowledged, as far as the journal has it and the rows have not: since when, and the oldest
    offset where it stands."""

    __slots__ = ("acks", "offset", "since")

    def __init__(self, since: int, offset: int, acks: Acks) -> None:
        self.since = since
        self.offset = offset
        self.acks = acks


class CursorQueue:
    """By device, longest waiting first; also of devices that are gone."""

    def __init__(
        self,
        submit: Submit,
        new_id: Callable[[], int],
        now_ms: Callable[[], int],
        monotonic_ms: Callable[[], int],
        folded: Callable[[], int],
        behind: Callable[[], bool],
        hold_ms: int,
    ) -> None:
        """`folded`: the newest offset that has been folded. `behind`: moves would be refused. `hold_ms`: how long rows
        wait."""
        self._submit = submit
        self._folded = folded
        self._behind = behind
        self._hold_ms = hold_ms
        self._new_id = new_id
        self._now_ms = now_ms
        self._monotonic_ms = monotonic_ms
        # Not in the journal yet. The inner ones are to be raised in place, before anything else runs.
        self.gathered: dict[Owner, Acks] = {}
        self._noting: dict[Owner, Acks] = {}  # the same, in records being committed
        self._noting_after = 0  # these come after that offset
        self._held: dict[Owner, Held] = {}  # in the journal, not in the rows; offsets ascend, and so do times
        # The same, in records being committed, or to be committed again: one commit's at most.
        self._moving: dict[Owner, Held] = {}
        self._moved_ms = 0  # when rows were last moved
        self.size = 0  # entries that are held
        self._seen: dict[Owner, int] = {}
        self._wanted: set[Owner] = set()  # somebody waits for their rows
        # There is one `_noting` and one `_moving`. Nobody waits for one lock while holding the other.
        self._note_lock = asyncio.Lock()
        self._move_lock = asyncio.Lock()

    def of(self, owner: Owner) -> Acks:
        """What the device has gathered."""
        gathered = self.gathered.get(owner)
        if gathered is None:
            gathered = self.gathered[owner] = {}
        return gathered

    def acked(self, owner: Owner, conversation: str) -> int:
        """What the device acknowledged and the store may not have yet; 0: nothing."""
        found = 0
        for fresh in (self.gathered.get(owner), self._noting.get(owner)):
            if fresh:
                found = max(found, fresh.get(conversation, 0))
        for held in (self._held.get(owner), self._moving.get(owner)):
            if held:
                found = max(found, held.acks.get(conversation, 0))
        return found

    def seen(self, user: str, device: str, at: int) -> None:
        """The device was used at `at` ms."""
        self._seen[user, device] = at

    @property
    def needed(self) -> int | None:
        """The oldest offset at which the journal has what no row has yet; None: there is no such."""
        oldest = [held.offset for held in self._moving.values()]
        if self._held:
            oldest.append(next(iter(self._held.values())).offset)
        if self._noting:
            oldest.append(self._noting_after + 1)
        return min(oldest, default=None)

    # -- to the journal --------------------------------------------------------------------------

    async def note(self, owners: Collection[Owner] = (), *, all_seen: bool = False) -> None:
        """Write what has gathered, and which devices were used (some, or all). With `owners` only if there is
        something of theirs, and theirs in any case. Raises Refused: it stays for the next time."""
        async with self._note_lock:
            theirs = [owner for owner in owners if owner in self._seen]
            if (
                not theirs and self.gathered.keys().isdisjoint(owners)
                if owners
                else not (self.gathered or self._seen)
            ):
                return
            seen = self._take_seen(theirs)
            if not self._behind():
                seen += self._take_seen(list(islice(self._seen, None if all_seen else MAX_ENTRIES)))
            self._noting, self.gathered = self.gathered, {}
            self._noting_after = self._folded()
            now = self._now_ms()
            try:
                noted = [Acked(self._new_id(), now, acks) for acks in _chunks(self._noting, MAX_NOTED)]
                used = [
                    Cursors(self._new_id(), now, [], seen[at : at + MAX_ENTRIES])
                    for at in range(0, len(seen), MAX_ENTRIES)
                ]
                # What is noted changes no row, and is taken while the store is full; when a device was used does.
                outcomes, refusal = await asyncio.gather(
                    self._submit_all(noted, always=True), self._submit_all(used, always=False),
                    return_exceptions=True,
                )  # fmt: skip
            except BaseException:  # cancelled, too: it may be written, and again does no harm
                self._put_back(seen)
                raise
            if isinstance(refusal, BaseException):
                self._put_back(seen, noted=False)
            if isinstance(outcomes, BaseException):
                self._put_back([])
                raise outcomes
            noting, self._noting = self._noting, {}
            offset = min([outcome.offset for outcome in outcomes if isinstance(outcome, Noted)], default=0)
            since = self._monotonic_ms()
            for owner, acks in noting.items():
                if acks:  # (an acknowledgement of nothing new leaves a place for one)
                    self._hold(owner, acks, offset, since)
            if isinstance(refusal, BaseException):
                raise refusal

    def _put_back(self, seen: list[Seen], noted: bool = True) -> None:
        """For the next time."""
        for user, device, at in seen:
            self._seen.setdefault((user, device), at)
        if noted:
            noting, self._noting = self._noting, {}
            for owner, acks in noting.items():
                _raise(self.of(owner), acks)

    def restore(self, record: Acked | Cursors, offset: int) -> None:
        """Take in again what stands in the journal at `offset` (start-up; in the journal's order)."""
        for user, device, acks in record.acks:
            owner = (user, device)
            if isinstance(record, Acked):
                self._hold(owner, acks, offset, self._monotonic_ms())
            elif (held := self._held.get(owner)) is not None:
                self.size -= len(held.acks)
                held.acks = {key: seq for key, seq in held.acks.items() if seq > acks.get(key, 0)}
                self.size += len(held.acks)
                if not held.acks:
                    del self._held[owner]

    def _hold(self, owner: Owner, acks: Acks, offset: int, since: int) -> None:
        held = self._held.get(owner)
        if held is None:
            self._held[owner] = Held(since, offset, acks)
            self.size += len(acks)
        else:
            before = len(held.acks)
            _raise(held.acks, acks)
            self.size += len(held.acks) - before

    # -- to the rows -----------------------------------------------------------------------------

    async def move(self) -> None:
        """Move the rows whose time has come. What is refused stays for the next time."""
        with suppress(Refused):
            while await self._move_due():
                pass

    async def _move_due(self) -> bool:
        """One commit's share. Raises Refused. False: nothing is due, or would be taken."""
        async with self._move_lock:
            if self._behind():
                return False
            if not self._moving:  # else it was refused
                self._take_due()
            if not self._moving:
                return False
            await self._move()
            return True

    def _take_due(self) -> None:
        now = self._monotonic_ms()
        due, room = now - self._hold_ms, self._share(now)
        for owner, held in list(islice(self._held.items(), room)):  # each has an entry at least
            if (held.since > due and self.size <= MAX_HELD) or room <= 0:
                break
            room -= self._take(owner, held, room)

    def _share(self, now: int) -> int:
        """How many rows a commit moves: of what is held the part that comes due in the time since the last one, and
        half as many again to catch up; or as many as it can where too much is held. So they are spread evenly, however
        often the server commits."""
        passed, self._moved_ms = min(now - self._moved_ms, CATCH_UP_MS), now
        part = self.size * passed * 3 // (2 * self._hold_ms or 1)
        return min(max(A_COMMIT, part, self.size - MAX_HELD), MOST)

    async def flush_user(self, user: str, devices: Iterable[str]) -> None:
        """Write what the user's devices have acknowledged and when they were used: a new device starts where the
        furthest stands, and the one unused for longest is forgotten for it. Raises Refused."""
        owners = {(user, device) for device in devices}
        await self.note(owners)
        self._wanted |= owners
        try:
            async with self._move_lock:
                if self._moving:  # it was refused, and may be theirs
                    await self._move()
                while theirs := owners & self._held.keys():
                    room = MOST
                    for owner in theirs:
                        if room > 0:
                            room -= self._take(owner, self._held[owner], room)
                    for owner in (self._wanted - owners) & self._held.keys():
                        if len(self._held[owner].acks) <= room:
                            room -= self._take(owner, self._held[owner], room)
                    await self._move()
        finally:
            self._wanted -= owners

    def _take(self, owner: Owner, held: Held, room: int) -> int:
        """Have the device's entries move, up to `room`. Returns how many do."""
        if len(held.acks) <= room:
            del self._held[owner]
            self._moving[owner] = held
        else:
            part = dict(islice(held.acks.items(), room))
            for conversation in part:
                del held.acks[conversation]
            self._moving[owner] = Held(held.since, held.offset, part)
        count = len(self._moving[owner].acks)
        self.size -= count
        return count

    async def _move(self) -> None:
        """Write the rows of what is moving. Raises Refused: it moves the next time (it may be in the journal's hands, and
        must not change)."""
        acks = {owner: held.acks for owner, held in self._moving.items()}
        now = self._now_ms()
        moved = [Cursors(self._new_id(), now, chunk, []) for chunk in _chunks(acks, MAX_ENTRIES)]
        await self._submit_all(moved, always=False)
        self._moving = {}

    # -- both ------------------------------------------------------------------------------------

    def _take_seen(self, owners: list[Owner]) -> list[Seen]:
        return [(*owner, self._seen.pop(owner)) for owner in owners]

    async def _submit_all(self, records: Sequence[Acked | Cursors], *, always: bool) -> list[Outcome]:
        """Have them share a commit. Raises the first refusal, after all have an answer."""
        outcomes = await asyncio.gather(
            *[
                self._submit(
                    record,
                    ENTRY_WEIGHT * (sum([len(acks) for _, _, acks in record.acks]) + 1),
                    always,
                )
                for record in records
            ],
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


def _raise(acks: Acks, others: Acks) -> Acks:
    """Raise each of `acks` to what the others say, in place."""
    for conversation, seq in others.items():
        if seq > acks.get(conversation, 0):
            acks[conversation] = seq
    return acks


def _chunks(acks: Mapping[Owner, Acks], limit: int) -> Iterator[list[tuple[str, str, Acks]]]:
    """All of it, `limit` entries at a time."""
    chunk: list[tuple[str, str, Acks]] = []
    room = limit
    for owner, rest in acks.items():
        while len(rest) > room:
            if room:
                chunk.append((*owner, dict(islice(rest.items(), room))))
            yield chunk
            rest = dict(islice(rest.items(), room, None))
            chunk, room = [], limit
        if rest:
            chunk.append((*owner, rest))
            room -= len(rest)
    if chunk:
        yield chunk
