"""A share of the loop: nobody else waits for more than it, nobody is passed over, and an idle loop is all there is."""

from __future__ import annotations

import asyncio

import pytest

from hongyan.share import LATEST_S, Share


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def storm(share: Share, clock: Clock, pieces: int, piece_s: float, live_s: float) -> list[int]:
    """Have `pieces` come at once, and other work of `live_s` in each turn. Returns how many went on in each turn."""
    loop = asyncio.get_running_loop()
    turns, done = [0], []

    def turn() -> None:
        nonlocal handle
        turns.append(0)
        clock.now += live_s
        handle = loop.call_soon(turn)

    async def piece(number: int) -> None:
        await share.turn()
        turns[-1] += 1
        clock.now += piece_s
        share.charge(piece_s)
        done.append(number)

    handle = loop.call_soon(turn)
    await asyncio.gather(*[piece(number) for number in range(pieces)])
    handle.cancel()
    assert done == list(range(pieces)), "in the order of their coming"
    return turns


async def test_pieces_fill_the_floor_where_nothing_else_is_to_be_done() -> None:
    clock = Clock()
    turns = await storm(Share(clock, floor_s=0.002, part=0.25, piece_s=0.001), clock, 200, 0.001, 0)
    assert 1 <= max(turns[3:]) <= 3
    assert min(turns[3:-3]) >= 1, "no turn passes without"


async def test_pieces_take_a_part_of_a_long_turn() -> None:
    clock = Clock()
    turns = await storm(Share(clock, floor_s=0.002, part=0.25, piece_s=0.0005), clock, 2000, 0.0005, 0.03)
    steady = turns[10:-2]
    # 30 ms of others' are three quarters of a turn, so 10 ms are theirs: 20 pieces.
    assert 15 <= sum(steady) / len(steady) <= 21
    assert max(steady) <= 22


async def test_what_a_piece_costs_is_learned() -> None:
    clock = Clock()
    share = Share(clock, floor_s=0.002, part=0.25, piece_s=0.0001)
    turns = await storm(share, clock, 400, 0.004, 0)
    assert max(turns[-50:]) <= 2, "it was taken for forty times cheaper"


async def test_what_a_piece_costs_beside_is_learned_too() -> None:
    clock = Clock()
    share = Share(clock, floor_s=0.002, part=0.25, piece_s=0.0001)
    for _ in range(100):
        share.charge(0.0003)
        share.charge_too(0.0007)
    assert share._piece_s == pytest.approx(0.001, rel=0.05)


async def test_who_is_sent_away_comes_back_one_after_the_other() -> None:
    clock = Clock()
    share = Share(clock, floor_s=0.002, part=0.25, piece_s=0.001)
    assert share.wait_s == 0
    waiting = [asyncio.ensure_future(share.turn()) for _ in range(100)]
    await asyncio.sleep(0)
    wait = share.wait_s
    assert wait > 0.05
    told = [share.later() for _ in range(50)]
    assert told == sorted(told)
    assert told[0] > wait
    assert told[-1] - told[0] > 0.04
    clock.now += 10
    assert share.later() < told[0] + 1, "their time has passed"
    await asyncio.gather(*waiting)
    assert share.wait_s == 0


async def test_nobody_is_sent_away_for_more_than_a_minute() -> None:
    share = Share(Clock(), floor_s=0.002, part=0.25, piece_s=0.01)
    assert max(share.later() for _ in range(20_000)) == LATEST_S


async def test_who_goes_while_waiting_costs_no_turn() -> None:
    clock = Clock()
    share = Share(clock, floor_s=0.001, part=0.25, piece_s=0.001)
    waiting = [asyncio.ensure_future(share.turn()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting[1:-1]:
        task.cancel()
    await asyncio.wait(waiting[1:-1])
    turns = 0
    while not waiting[-1].done():
        await asyncio.sleep(0)
        turns += 1
    assert turns < 10


async def test_an_idle_share_keeps_no_loop_awake() -> None:
    clock = Clock()
    share = Share(clock, floor_s=0.002, part=0.25, piece_s=0.001)
    await share.turn()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not share._turning
    assert share.fits()
