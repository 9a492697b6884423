"""Acknowledgements on their way: into the journal within a tick, into rows later, never back."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hongyan.engine import cursors
from hongyan.engine.cursors import A_COMMIT, MAX_NOTED, MOST, Acks, CursorQueue
from hongyan.engine.sessions import Owner
from hongyan.errors import Refused, refused
from hongyan.protocol.outcomes import Done, Noted, Outcome
from hongyan.protocol.records import Acked, Cursors, Record

HOLD_MS = 10_000


class Log:
    """A journal and its fold, as far as cursors go; one commit a turn of the loop. `failing` refuses."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self.offset = 0
        self.rows: dict[tuple[Owner, str], int] = {}
        self.failing = False
        self.gate = asyncio.Event()
        self.gate.set()
        self._next: list[Record] = []
        self.busy = False
        self.rows_gate = asyncio.Event()  # of commits that move rows
        self.rows_gate.set()

    async def submit(self, record: Record, weight: int = 0, always: bool = False) -> Outcome:
        if not self._next:
            asyncio.get_running_loop().call_soon(self.commit)
        if self.busy and not always:
            raise refused("busy", "behind")
        self._next.append(record)
        await asyncio.sleep(0)
        await self.gate.wait()
        if isinstance(record, Cursors):
            await self.rows_gate.wait()
        if self.failing:
            raise refused("unavailable", "full")
        return Noted(self.offset) if isinstance(record, Acked) else Done()

    def commit(self) -> None:
        records, self._next = self._next, []
        if self.failing:
            return
        self.offset += 1
        self.batches.append(records)
        for record in records:
            assert isinstance(record, Acked | Cursors)
            if isinstance(record, Cursors):
                for user, device, acks in record.acks:
                    for key, seq in acks.items():
                        at = ((user, device), key)
                        self.rows[at] = max(seq, self.rows.get(at, 0))


class Rig:
    def __init__(self) -> None:
        self.log = Log()
        self.ms = 1_000_000
        self.queue = self.new()

    def new(self) -> CursorQueue:
        ids = itertools.count(1)
        return CursorQueue(
            self.log.submit, lambda: next(ids), lambda: self.ms, lambda: self.ms, lambda: self.log.offset,
            lambda: self.log.busy, HOLD_MS,
        )  # fmt: skip

    def ack(self, owner: Owner, key: str, seq: int) -> None:
        of = self.queue.of(owner)
        if seq > of.get(key, 0):
            of[key] = seq

    def known(self, owner: Owner, key: str) -> int:
        return max(self.queue.acked(owner, key), self.log.rows.get((owner, key), 0))

    async def tick(self) -> None:
        """What the engine does ten times a second, in two tasks."""
        with suppress(Refused):
            await self.queue.note()
        await self.queue.move()

    def after_a_crash(self, trimmed: int) -> CursorQueue:
        queue = self.new()
        for offset, records in enumerate(self.log.batches, 1):
            for record in records:
                if offset > trimmed and isinstance(record, Acked | Cursors):
                    copy: list[tuple[str, str, Acks]] = [(u, d, dict(of)) for u, d, of in record.acks]
                    kind = type(record)
                    again: Any = kind(1, 1, copy) if kind is Acked else kind(1, 1, copy, [])
                    queue.restore(again, offset)
        return queue


A, B = ("alice", "a1"), ("bob", "b1")


async def test_one_tick_has_the_journal_note_everything_however_many_acknowledged() -> None:
    rig = Rig()
    rig.log.busy = True  # what is noted costs the store nothing
    for n in range(3 * MAX_NOTED):
        rig.ack((f"u{n}", "d"), "#team", 1)
    await rig.tick()
    assert not rig.queue.gathered
    assert len(rig.log.batches) == 1
    noted = [record for record in rig.log.batches[0] if isinstance(record, Acked)]
    assert sum(len(record.acks) for record in noted) == 3 * MAX_NOTED
    assert max(len(record.acks) for record in noted) == MAX_NOTED
    assert rig.log.rows == {}


async def test_rows_move_after_they_were_held_once_for_all_acknowledgements_since() -> None:
    rig = Rig()
    for seq in range(1, 100):
        rig.ack(A, "#team", seq)
        await rig.tick()
        rig.ms += HOLD_MS // 100
    assert rig.log.rows == {}
    rig.ms += HOLD_MS // 100
    await rig.tick()
    assert rig.log.rows == {(A, "#team"): 99}
    moved = [record for batch in rig.log.batches for record in batch if isinstance(record, Cursors)]
    assert len(moved) == 1
    assert (rig.queue.size, rig.queue.needed) == (0, None)


async def test_a_commit_moves_a_bounded_number_of_rows_and_all_are_moved() -> None:
    rig = Rig()
    for n in range(3 * A_COMMIT):
        rig.ack(A if n % 2 else B, f"#g{n}", 1)
    await rig.tick()
    rig.ms += HOLD_MS
    await rig.tick()
    moved = [
        sum(len(of) for r in b if isinstance(r, Cursors) for _, _, of in r.acks) for b in rig.log.batches
    ]
    assert max(moved) == A_COMMIT
    assert sum(moved) == len(rig.log.rows) == 3 * A_COMMIT


async def test_of_many_rows_a_commit_moves_what_came_due_since_the_last_and_half_as_many_again() -> None:
    rig = Rig()
    count, commit_ms = 40_000, 20
    for n in range(count):
        rig.ack(A if n % 2 else B, f"#g{n}", 1)
    await rig.tick()
    rig.ms += HOLD_MS
    noted, written = len(rig.log.batches), rig.log.commit

    def commit() -> None:
        rig.ms += commit_ms
        written()

    rig.log.commit = commit  # type: ignore[method-assign]
    await rig.tick()
    moved = [sum(len(of) for r in b for _, _, of in r.acks) for b in rig.log.batches[noted:]]  # type: ignore[union-attr]
    assert sum(moved) == len(rig.log.rows) == count
    assert max(moved[1:]) <= count * commit_ms * 3 // (2 * HOLD_MS), "spread"
    assert moved[1] >= count * commit_ms // HOLD_MS, "faster than they come due"


async def test_past_what_may_be_held_the_longest_waiting_rows_move_before_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cursors, "MAX_HELD", 1_000)
    rig = Rig()
    for n in range(900):
        rig.ack(A, f"#g{n}", 1)
    await rig.tick()
    assert rig.log.rows == {}
    for n in range(600):
        rig.ack(B, f"#g{n}", 1)
    await rig.tick()
    await rig.queue.move()
    assert 1_000 - A_COMMIT < rig.queue.size <= 1_000
    assert rig.log.rows == {(A, f"#g{n}"): 1 for n in range(1_500 - rig.queue.size)}


async def test_the_journal_is_needed_from_the_moment_that_noting_begins() -> None:
    """The commit is folded a turn of the loop before who waits for it goes on: a trim may come in between."""
    rig = Rig()
    await rig.log.submit(Cursors(1, 1, [], []), 0, False)
    rig.log.gate.clear()
    rig.ack(A, "#team", 5)
    noting = asyncio.create_task(rig.queue.note())
    while rig.log.offset < 2:
        await asyncio.sleep(0)
    assert rig.queue.needed == 2
    assert rig.queue.acked(A, "#team") == 5
    rig.log.gate.set()
    await noting
    assert rig.queue.needed == 2


async def test_noting_does_not_wait_for_rows() -> None:
    rig = Rig()
    rig.ack(A, "#team", 1)
    await rig.tick()
    rig.ms += HOLD_MS
    rig.log.rows_gate.clear()
    moving = asyncio.create_task(rig.queue.move())
    while not rig.queue._moving:
        await asyncio.sleep(0)
    rig.ack(B, "#team", 2)
    await rig.queue.note()
    assert not rig.queue.gathered
    rig.log.rows_gate.set()
    await moving


async def test_what_is_noted_while_busy_is_noted_once_and_changes_no_row() -> None:
    """The store is full: when a device was used waits in memory, a number a device."""
    rig = Rig()
    rig.log.busy = True
    rig.ack(A, "#team", 1)
    rig.queue.seen("bob", "b1", 5)
    for _ in range(3):
        await rig.tick()
    noted = [record for batch in rig.log.batches for record in batch]
    assert [type(record) for record in noted] == [Acked]
    assert (rig.queue.size, rig.queue._seen) == (1, {B: 5})
    rig.log.busy = False
    await rig.tick()
    assert [record.seen for record in rig.log.batches[-1] if isinstance(record, Cursors)] == [[(*B, 5)]]
    assert rig.queue._seen == {}


async def test_while_behind_no_row_is_taken_up() -> None:
    rig = Rig()
    rig.ack(A, "#team", 1)
    await rig.tick()
    rig.ms += HOLD_MS
    rig.log.busy = True
    await rig.tick()
    assert rig.queue._moving == {}
    rig.log.busy = False
    await rig.tick()
    assert rig.log.rows == {(A, "#team"): 1}


async def test_what_was_refused_moves_first_and_nothing_is_added_to_it() -> None:
    rig = Rig()
    for n in range(3 * A_COMMIT):
        rig.ack(A, f"#g{n}", 1)
    await rig.tick()
    rig.ms += HOLD_MS
    rig.log.failing = True
    for _ in range(3):
        await rig.tick()
        assert sum(len(held.acks) for held in rig.queue._moving.values()) == A_COMMIT
    rig.ack(A, "#g0", 2)
    assert rig.known(A, "#g0") == 2
    rig.log.failing = False
    await rig.tick()
    assert len(rig.log.rows) == 3 * A_COMMIT
    rig.ms += HOLD_MS
    await rig.tick()
    assert rig.log.rows[A, "#g0"] == 2


async def test_one_commit_moves_no_more_than_it_can_whatever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past what may be held, and also where one user's devices have it all and a new one logs in."""
    monkeypatch.setattr(cursors, "MAX_HELD", 1_000)
    for flushed in (False, True):
        rig = Rig()
        for n in range(6 * MOST):
            rig.ack(A, f"#g{n}", 1)
        await rig.queue.note()
        if flushed:
            await rig.queue.flush_user("alice", ["a1", "new"])
            assert len(rig.log.rows) == 6 * MOST
        else:
            await rig.queue.move()
            assert rig.queue.size <= 1_000
        moved = [
            sum(len(of) for r in b if isinstance(r, Cursors) for _, _, of in r.acks) for b in rig.log.batches
        ]
        assert max(moved) == MOST


async def test_the_journal_is_needed_from_the_oldest_that_moves() -> None:
    rig = Rig()
    rig.ack(A, "#team", 1)
    await rig.queue.note()
    rig.ack(("alice", "a2"), "#team", 1)
    await rig.queue.note()
    for devices in (["a1", "a2"], ["a2", "a1"]):
        rig.log.rows_gate.clear()
        moving = asyncio.create_task(rig.queue.flush_user("alice", devices))
        while not rig.queue._moving:
            await asyncio.sleep(0)
        assert rig.queue.needed == 1
        moving.cancel()
        with suppress(asyncio.CancelledError):
            await moving
        rig.log.rows_gate.set()
    assert rig.queue.needed == 1


async def test_users_who_wait_for_their_rows_share_a_commit() -> None:
    rig = Rig()
    for n in range(100):
        rig.ack((f"u{n}", "d"), "#team", 1)
    await asyncio.gather(*[rig.queue.flush_user(f"u{n}", ["d", "new"]) for n in range(100)])
    assert len(rig.log.rows) == 100
    assert len(rig.log.batches) < 20
    assert not rig.queue._wanted


async def test_a_user_whose_rows_are_refused_with_anothers_is_told() -> None:
    rig = Rig()
    rig.ack(A, "#team", 1)
    rig.ack(B, "#team", 1)
    await rig.queue.note()
    rig.log.failing = True
    both = [rig.queue.flush_user("alice", ["a1"]), rig.queue.flush_user("bob", ["b1"])]
    assert [type(each) for each in await asyncio.gather(*both, return_exceptions=True)] == [Refused, Refused]
    assert not rig.queue._wanted


async def test_a_refused_move_stands_where_it_stood() -> None:
    rig = Rig()
    rig.ack(A, "#old", 1)
    await rig.queue.note()
    rig.ack(B, "#team", 7)
    await rig.queue.note()
    rig.log.failing = True
    with pytest.raises(Refused):
        await rig.queue.flush_user("bob", ["b1"])
    assert rig.queue.needed == 1, "alice's is older, and nobody moved it"
    assert rig.known(B, "#team") == 7
    rig.log.failing = False
    await rig.queue.flush_user("bob", ["b1"])
    assert rig.log.rows == {(B, "#team"): 7}
    assert rig.queue.needed == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ack"), st.sampled_from([A, B]), st.sampled_from("xyz"), st.integers(0, 9)),
        st.tuples(st.sampled_from(["tick", "tick", "note", "flush", "wait", "trim", "crash"])),
        st.tuples(st.just("fail"), st.booleans()),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps)
def test_no_acknowledgement_is_lost_whatever_happens_in_between(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(live(steps))


async def live(steps: list[tuple[Any, ...]]) -> None:
    rig, trimmed = Rig(), 0
    told: dict[tuple[Owner, str], int] = {}  # the highest acknowledged
    sure: dict[tuple[Owner, str], int] = {}  # what a crash must not forget
    for step in steps:
        match step:
            case ("ack", owner, key, seq):
                rig.ack(owner, key, seq)
                if seq:
                    told[owner, key] = max(seq, told.get((owner, key), 0))
            case ("fail", failing):
                rig.log.failing = failing
            case ("wait",):
                rig.ms += HOLD_MS
            case ("trim",):
                needed = rig.queue.needed
                trimmed = max(trimmed, rig.log.offset if needed is None else needed - 1)
            case ("crash",):
                rig.queue = rig.after_a_crash(trimmed)
                told = dict(sure)
            case (what,):
                try:
                    await {"tick": rig.tick, "note": rig.queue.note}.get(
                        what, lambda: rig.queue.flush_user("alice", ["a1"])
                    )()
                except Refused:
                    pass
        if not rig.queue.gathered:
            sure = dict(told)
        for (owner, key), seq in told.items():
            assert rig.known(owner, key) >= seq
        held = [len(each.acks) for each in rig.queue._held.values()]
        assert (rig.queue.size, 0 in held) == (sum(held), False)
        waiting = [*rig.queue._held.values(), *rig.queue._moving.values()]
        assert rig.queue.needed == min((each.offset for each in waiting), default=None)
    rig.log.failing = False
    for _ in range(2):
        await rig.tick()
        rig.ms += HOLD_MS
    assert {at: seq for at, seq in rig.log.rows.items() if seq < told.get(at, 0)} == {}
    assert told.keys() <= rig.log.rows.keys()
