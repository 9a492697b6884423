"""The sum of what waits for all connections is bounded, and the largest pay."""

from __future__ import annotations

from hongyan.gateway.budget import FEW, LOOKS, Budget


class Slow:
    def __init__(self, backlog: int) -> None:
        self.backlog = backlog
        self.closed = 0

    def too_slow(self) -> None:
        self.closed += 1


def test_within_the_limit_nobody_is_closed() -> None:
    consumers = [Slow(10), Slow(0), Slow(90)]
    budget = Budget(100, lambda: consumers, lambda: None)
    budget.tick()
    assert budget.waiting == 100
    assert not any(consumer.closed for consumer in consumers)


def test_past_it_the_largest_are_closed_and_no_more_than_needed() -> None:
    consumers, hits = [Slow(size) for size in (10, 70, 20, 50, 5)], list[int]()
    budget = Budget(90, lambda: consumers, lambda: hits.append(1))
    budget.tick()
    assert [consumer.closed for consumer in consumers] == [0, 1, 0, 0, 0]
    assert (len(hits), budget.waiting) == (1, 85)


def test_who_is_closed_and_still_takes_nothing_is_asked_again() -> None:
    stuck = Slow(1000)
    budget = Budget(100, lambda: [stuck], lambda: None)
    budget.tick()
    budget.tick()
    assert stuck.closed == 2


def test_many_are_looked_at_in_turn_within_a_second() -> None:
    consumers = [Slow(1) for _ in range(3 * LOOKS * FEW)]
    budget = Budget(len(consumers), lambda: consumers, lambda: None)
    for _ in range(LOOKS - 1):
        budget.tick()
    assert budget.waiting == 0
    budget.tick()
    assert budget.waiting == len(consumers)
