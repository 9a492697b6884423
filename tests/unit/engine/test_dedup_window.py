"""The duplicate window's figures may change: a replay from wherever a crash left the store decides alike."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hongyan.engine import sequencer, window
from hongyan.engine.sequencer import Sequencer
from hongyan.engine.window import Window
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import DedupWindow, Record, Register, Send
from hongyan.protocol.state import Message
from memory_store import MemoryStore

Batch = tuple[int, int, list[Record]]  # first offset, log ms, records


class Life:
    """A fold that keeps a journal, and what the store was after each batch."""

    def __init__(self, span: int, limit: int, noted: bool = True) -> None:
        self.settings = span, limit
        self.store = MemoryStore()
        self.window = Window(span, limit)
        self.sequencer = Sequencer(self.store, self.window)
        self.journal: list[Batch] = []
        self.outcomes: dict[int, list[Outcome]] = {}
        self.stores: list[MemoryStore] = []
        self.log_ms = 1000
        self.number = 0
        if noted:
            self.batch([self.note(span, limit)])
        self.batch([Register(self.id(), 1, "a", "")])

    def id(self) -> int:
        self.number += 1
        return self.number

    def note(self, span: int, limit: int) -> DedupWindow:
        return DedupWindow(self.id(), 1, span, limit)

    def batch(self, records: Sequence[Record]) -> None:
        first = self.store.offset + 1
        self.outcomes[first] = self.sequencer.fold(records, first, self.log_ms)
        self.store.apply(first + len(records) - 1, self.sequencer.changes)
        self.journal.append((first, self.log_ms, list(records)))
        self.stores.append(copy.deepcopy(self.store))

    def trim(self, at_most: int | None = None) -> None:
        """As a checkpoint does, with the store safe as it is now; `at_most`: a crash came after so many batches."""
        needed = self.window.oldest_offset(self.log_ms)
        offset = self.store.offset
        upto = self.window.trimmable(offset if needed is None else min(offset, needed - 1))
        dropped = sum(batch[0] + len(batch[2]) - 1 <= upto for batch in self.journal[:-1])
        self.journal = self.journal[dropped if at_most is None else min(dropped, at_most) :]
        self.stores = self.stores[-1:]  # no older one can come back

    def replay(self, store: MemoryStore) -> None:
        trimmed = self.journal[0][0] > 1
        noted = type(self.journal[0][2][0]) is DedupWindow
        # Whatever the settings say now, where a note comes before all that counts.
        window = Window(7, 3) if trimmed or noted else Window(*self.settings)
        sequencer = Sequencer(store, window)
        for first, log_ms, records in self.journal:
            if first <= store.offset:
                sequencer.remember(records, first, log_ms, trimmed)
                continue
            assert sequencer.fold(records, first, log_ms) == self.outcomes[first]
            store.apply(first + len(records) - 1, sequencer.changes)
        assert store.snapshot() == self.store.snapshot()


sends = st.tuples(st.just("send"), st.lists(st.sampled_from("klmnopKL"), min_size=1, max_size=4))
notes = st.tuples(st.just("note"), st.integers(0, 60), st.integers(1, 5))
cuts = st.tuples(st.just("cut"), st.integers(1, 3))
steps = st.lists(st.one_of(sends, sends, notes, cuts, st.just(("trim",)), st.just(("wait",))), max_size=20)


@settings(max_examples=400, deadline=None)
@given(steps=steps, span=st.integers(0, 60), limit=st.integers(1, 5), noted=st.booleans())
def test_a_replay_decides_alike_from_every_store_that_can_come_back(
    steps: list[tuple[object, ...]], span: int, limit: int, noted: bool
) -> None:
    live(steps, span, limit, noted)


@settings(max_examples=200, deadline=None)
@given(steps=steps, span=st.integers(0, 60), limit=st.integers(1, 5))
def test_keys_of_one_hash_are_told_apart(steps: list[tuple[object, ...]], span: int, limit: int) -> None:
    unlike = live(steps, span, limit)
    with patch.object(sequencer, "hash", len, create=True), patch.object(window, "hash", len, create=True):
        alike = live(steps, span, limit)
    assert alike.outcomes == unlike.outcomes
    assert len(alike.window) == len(unlike.window)


def live(steps: list[tuple[object, ...]], span: int, limit: int, noted: bool = True) -> Life:
    """`noted`: the first start could state the window's figures (on a full disk it cannot)."""
    life = Life(span, limit, noted)
    life.trim()
    for step in steps:
        match step:
            case ("send", list(keys)):
                life.log_ms += 5
                life.batch(
                    [  # capitals go to one who does not exist
                        Send(
                            life.id(), life.log_ms, "a", "a|a" if key.islower() else "a|b", key, "text", b"1"
                        )
                        for key in keys
                    ]
                )
            case ("note", int(span), int(limit)):
                life.batch([life.note(span, limit)])
            case ("trim",):
                life.trim()
            case ("cut", int(at_most)):
                life.trim(at_most)
            case _:
                life.log_ms += 20
    for store in list(life.stores):
        life.replay(copy.deepcopy(store))
    return life


def test_what_a_trim_cut_off_left_is_not_found_again() -> None:
    """k was forgotten under a window of 10 ms, which was widened after; the trim dropped the first note only."""
    life = Life(10, 5)
    life.batch([Send(life.id(), 1, "a", "a|a", "k", "text", b"1")])
    life.log_ms += 100
    life.batch([life.note(1000, 5)])
    life.batch([Send(life.id(), 1, "a", "a|a", "l", "text", b"1")])
    life.trim(2)
    assert type(life.journal[0][2][0]) is Send
    store = copy.deepcopy(life.store)
    life.batch([Send(life.id(), 1, "a", "a|a", "k", "text", b"1")])
    assert type(life.outcomes[life.journal[-1][0]][0]) is Message
    life.replay(store)


def test_a_larger_window_does_not_bring_back_what_was_forgotten() -> None:
    window = Window(10, 100)
    window.close_batch([window.add(("a", "a|a", "k"), 1)], 0, 1)
    window.forget(11)
    window.resize(1000, 100, 2)
    assert len(window) == 0


@pytest.mark.parametrize(("upto", "kept"), [(9, 0), (10, 0), (19, 0), (28, 0), (29, 29), (40, 29), (99, 49)])
def test_the_journal_begins_with_a_note_whatever_is_trimmed(upto: int, kept: int) -> None:
    window = Window(10, 100)
    for offset in (30, 50):
        window.resize(10, 100, offset)
    assert window.trimmable(upto) == kept
