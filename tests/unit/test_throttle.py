"""So many a minute, in bounded memory."""

from __future__ import annotations

import pytest

from hongyan.throttle import Throttle


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_limit_at_once_then_evenly(clock):
    throttle = Throttle(3, monotonic=clock)
    assert [throttle.take("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert throttle.take("a") == pytest.approx(20)
    assert throttle.take("a") == pytest.approx(20), "a refusal does not count"
    assert throttle.take("b") == 0.0
    clock.now += 20
    assert throttle.take("a") == 0.0
    assert throttle.take("a") == pytest.approx(20)
    clock.now += 1000
    assert [throttle.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_what_is_given_back_was_never_taken(clock):
    throttle = Throttle(2, monotonic=clock)
    for _ in range(10):
        assert throttle.take("a") == 0.0
        throttle.give_back("a")
    throttle.give_back("nobody")
    assert [throttle.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_a_flood_of_keys_neither_grows_nor_frees_who_is_at_the_limit(clock):
    throttle = Throttle(5, max_keys=100, monotonic=clock)
    for _ in range(5):
        throttle.take("victim")
    for number in range(10_000):
        throttle.take(number)
        assert len(throttle) <= 100
    assert throttle.take("victim") > 0


def test_a_limit_of_nought_is_off_and_a_period_may_be_an_hour(clock):
    off = Throttle(0, monotonic=clock)
    assert {off.take("a") for _ in range(1000)} == {0.0}
    hourly = Throttle(2, 3600, monotonic=clock)
    assert [hourly.take("a"), hourly.take("a")] == [0.0, 0.0]
    assert hourly.take("a") == pytest.approx(1800)
