"""Snowflake ids: unique and ascending under any clock, in a process and across restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hongyan.ids import END_MS, EPOCH_MS, RESERVE_MS, Snowflake, time_ms

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


@given(st.lists(st.one_of(steps, near_steps), min_size=2, max_size=4), st.sampled_from([0, 1, 1023]))
def test_a_restart_is_above_every_id_ever_issued(lives: list[list[tuple[int, int]]], node: int) -> None:
    mark = 0

    def reserve(ms: int) -> None:
        nonlocal mark
        mark = ms

    last = -1
    for life in lives:
        clock = Clock()
        snowflake = Snowflake(node, clock, floor_ms=mark, reserve=reserve)
        for offset, count in life:
            clock.ms = NOW + offset
            for _ in range(count):
                id = snowflake.next()
                assert id > last
                assert time_ms(id) < mark, "an id left that the mark does not cover"
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


def test_the_mark_is_reserved_a_second_ahead_and_seldom() -> None:
    clock, marks = Clock(), list[int]()
    snowflake = Snowflake(1, clock, reserve=marks.append)
    for ms in range(RESERVE_MS):
        clock.ms = NOW + ms
        snowflake.next()
    assert marks == [NOW + RESERVE_MS]
    clock.ms = NOW + RESERVE_MS
    snowflake.next()
    assert marks == [NOW + RESERVE_MS, NOW + 2 * RESERVE_MS]


def test_an_id_is_not_issued_where_its_mark_could_not_be_kept() -> None:
    fails = True

    def reserve(ms: int) -> None:
        if fails:
            raise OSError("no")

    snowflake = Snowflake(1, Clock(), reserve=reserve)
    with pytest.raises(OSError, match="no"):
        snowflake.next()
    fails = False
    assert time_ms(snowflake.next()) == NOW


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
    with pytest.raises(OverflowError):
        snowflake.next()


@pytest.mark.parametrize("node", [-1, 1024])
def test_a_node_outside_10_bits_is_refused(node: int) -> None:
    with pytest.raises(ValueError, match="node"):
        Snowflake(node, Clock())
