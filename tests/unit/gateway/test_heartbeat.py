from __future__ import annotations

import asyncio

from hongyan.gateway.heartbeat import TICK_S, Wheel


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Thing:
    def __init__(self, *answers):
        self.bucket = -1
        self.answers = list(answers)
        self.asked = []

    def on_deadline(self, now):
        self.asked.append(now)
        return self.answers.pop(0) if self.answers else None


def wheel_and_clock():
    clock = Clock()
    return Wheel(clock), clock


def test_a_deadline_comes_once_and_never_early():
    wheel, clock = wheel_and_clock()
    thing = Thing()
    wheel.schedule(thing, 105.0)
    while clock.now < 110:
        clock.now += 0.03
        wheel.turn()
    (at,) = thing.asked
    assert 105.0 <= at <= 105.0 + 2 * TICK_S


def test_a_deadline_that_moved_is_asked_again():
    wheel, clock = wheel_and_clock()
    thing = Thing(120.0)
    wheel.schedule(thing, 105.0)
    for clock.now in (106.0, 119.0, 121.0, 130.0):
        wheel.turn()
    assert thing.asked == [106.0, 121.0]


def test_a_removed_or_rescheduled_deadline_does_not_come():
    wheel, clock = wheel_and_clock()
    gone, moved = Thing(), Thing()
    wheel.schedule(gone, 105.0)
    wheel.schedule(moved, 105.0)
    wheel.remove(gone)
    wheel.schedule(moved, 200.0)
    clock.now = 150.0
    wheel.turn()
    assert (gone.asked, moved.asked) == ([], [])


def test_one_that_fails_does_not_stop_the_others():
    class Broken(Thing):
        def on_deadline(self, now):
            super().on_deadline(now)
            raise RuntimeError

    wheel, clock = wheel_and_clock()
    things = [Broken(), Thing(), Broken(), Thing()]
    for thing in things:
        wheel.schedule(thing, 101.0)
    clock.now = 102.0
    wheel.turn()
    assert all(thing.asked == [102.0] for thing in things)


def test_slowed_readers_resume_after_their_time():
    wheel, clock = wheel_and_clock()
    resumed = []
    resume = resumed.append

    def one():
        resume(1)

    wheel.slow(one, 101.0)
    wheel.turn()
    assert resumed == []
    clock.now = 101.0
    wheel.turn()
    wheel.turn()
    assert resumed == [1]


def test_what_fails_in_a_turn_costs_nobody_else_anything():
    wheel, clock = wheel_and_clock()
    resumed = []

    def broken():
        raise RuntimeError("on purpose")

    wheel.each_turn = broken
    wheel.slow(broken, 101.0)
    wheel.slow(lambda: resumed.append(1), 101.0)
    thing = Thing()
    wheel.schedule(thing, 101.0)
    clock.now = 102.0
    wheel.turn()
    clock.now = 103.0
    wheel.turn()
    assert (resumed, len(thing.asked)) == ([1], 1)


async def test_the_next_turn_comes_whatever_failed(monkeypatch):
    wheel, _ = wheel_and_clock()
    turns = asyncio.Event()
    count = 0

    def turn(self):
        nonlocal count
        count += 1
        if count == 3:
            turns.set()
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Wheel, "turn", turn)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    asyncio.get_running_loop().call_soon(wheel.start)
    async with asyncio.timeout(10):
        await turns.wait()
    wheel.stop()
