"""Snowflake ids: unique and ascending under any clock, in a process and across restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hongyan.errors import Refused
from hongyan.ids import END_MS, EPOCH_MS, RESERVE_MS, Snowflake, lane, time_ms

NOW = EPOCH_MS + 50_000_000_000

# Each step: where the clock jumps to (relative to NOW), and how many ids are then drawn.
steps = st.lists(
    st.tuples(st.integers(-200_000_000_000, 200_000_000_000), st.sampled_from([1, 2, 4096, 5000])), max_size=8
)
near_steps = st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([1, 2, 4095, 4096, 4097])), max_size=8)


class Clock:
    def __init__(self, ms: int = NOW) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


@given(st.one_of(steps, near_steps), st.integers(0, 1023))
def test_ids_ascend_whatever_the_clock_does(moves: list[tuple[int, int]], node: int) -> None:
    clock = Clock()
    snowflake = Snowflake(node, clock)
    last = -1
    for offset, count in moves:
        clock.ms = NOW + offset
        for _ in range(count):
            id = snowflake.next()
            assert id > last
            assert id >> 12 & 0x3FF == node
            assert id < 1 << 63
            last = id


life = st.lists(
    st.tuples(
        st.one_of(st.integers(-200_000_000_000, 200_000_000_000), st.integers(-3, 3)),
        st.sampled_from([1, 2, 4095, 4096, 5000]),
        st.booleans(),
    ),
    max_size=8,
)


@given(st.lists(life, min_size=2, max_size=4), st.sampled_from([0, 1, 1023]))
def test_a_restart_is_above_every_id_ever_issued(lives: list[list[tuple[int, int, bool]]], node: int) -> None:
    saved, last = 0, -1
    for moves in lives:
        clock = Clock()
        snowflake = Snowflake(node, clock, floor_ms=saved, mark_ms=0)
        for offset, count, disk in moves:
            clock.ms = NOW + offset
            mark = snowflake.to_reserve()
            if disk and mark:
                saved = mark
                snowflake.extend(mark)
            envelope = snowflake.envelope()
            for _ in range(count):
                try:
                    id = snowflake.next()
                except Refused:
                    break
                assert id > last
                assert id != envelope
                assert time_ms(id) < saved, "an id left that the mark does not cover"
                last = id


def test_the_bits_are_where_the_contract_puts_them() -> None:
    clock = Clock(EPOCH_MS + 5)
    snowflake = Snowflake(3, clock)
    assert [snowflake.next(), snowflake.next()] == [5 << 22 | 3 << 12, 5 << 22 | 3 << 12 | 1]
    assert time_ms(5 << 22 | 3 << 12 | 1) == EPOCH_MS + 5


def test_the_first_millisecond_of_node_0_does_not_repeat_its_zero_id() -> None:
    snowflake = Snowflake(0, Clock(EPOCH_MS))
    assert [snowflake.next() for _ in range(3)] == [0, 1, 2]


def test_past_4096_in_a_millisecond_the_next_is_borrowed() -> None:
    snowflake = Snowflake(1, Clock())
    ids = [snowflake.next() for _ in range(4097)]
    assert time_ms(ids[4095]) == NOW
    assert time_ms(ids[4096]) == NOW + 1


def test_the_mark_is_kept_ahead_and_seldom_saved() -> None:
    clock, marks = Clock(), list[int]()
    snowflake = Snowflake(1, clock, mark_ms=0)
    for second in range(60):
        clock.ms = NOW + 1000 * second
        if mark := snowflake.to_reserve():
            marks.append(mark)
            snowflake.extend(mark)
        assert time_ms(snowflake.next()) == clock.ms
    assert marks == [NOW + RESERVE_MS, NOW + 31_000 + RESERVE_MS]


def test_while_no_mark_can_be_saved_ids_go_on_with_what_is_reserved() -> None:
    clock = Clock()
    snowflake = Snowflake(1, clock, mark_ms=NOW + 3)
    clock.ms = NOW + 1
    ids = [snowflake.next()]
    clock.ms = NOW + RESERVE_MS  # past the mark
    with pytest.raises(Refused, match="unavailable"):
        while True:
            ids.append(snowflake.next())
    assert len(ids) == 2 * 4096
    assert ids == sorted(set(ids))
    assert time_ms(ids[-1]) == NOW + 2
    snowflake.extend(snowflake.to_reserve())
    assert time_ms(snowflake.next()) == clock.ms


def test_what_names_nothing_stored_needs_no_mark() -> None:
    clock = Clock()
    snowflake = Snowflake(1, clock, mark_ms=0)
    ids = [snowflake.envelope() for _ in range(5000)]
    assert ids == sorted(set(ids))
    with pytest.raises(Refused):
        snowflake.next()
    snowflake.extend(snowflake.to_reserve())
    assert snowflake.next() > ids[-1]


@given(st.integers(-5000, 5000), st.integers(0, 5000))
def test_raise_floor_issues_nothing_before_it(floor: int, drawn: int) -> None:
    snowflake = Snowflake(1, Clock())
    last = max((snowflake.next() for _ in range(drawn)), default=-1)
    snowflake.raise_floor(NOW + floor)
    id = snowflake.next()
    assert id > last
    assert time_ms(id) >= NOW + floor


def test_a_clock_before_the_epoch_begins_at_the_epoch() -> None:
    assert time_ms(Snowflake(1, Clock(0)).next()) == EPOCH_MS


def test_a_clock_past_the_41_bits_is_refused() -> None:
    clock = Clock(END_MS - 1)
    snowflake = Snowflake(1023, clock)
    assert snowflake.next() < 1 << 63
    clock.ms = END_MS
    for _ in range(4095):
        assert snowflake.next() < 1 << 63
    with pytest.raises(OverflowError):
        snowflake.next()
    assert snowflake.envelope() < 1 << 63


@pytest.mark.parametrize("node", [-1, 1024])
def test_a_node_outside_10_bits_is_refused(node: int) -> None:
    with pytest.raises(ValueError, match="node"):
        Snowflake(node, Clock())


@pytest.mark.parametrize("workers", [1, 2, 3, 64])
def test_processes_of_one_server_never_make_the_same_id(workers: int) -> None:
    made: list[int] = []
    for number in range(-1, workers):
        snowflake = Snowflake(1, Clock(), sequences=lane(number, workers))
        theirs = [snowflake.next() for _ in range(5000)]
        assert theirs == sorted(theirs)
        made += theirs
    assert len(set(made)) == len(made)
