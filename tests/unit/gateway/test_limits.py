from __future__ import annotations

from hongyan.gateway.limits import DEBT_S, FailedLogins, Rate, Recent


def test_a_burst_then_the_rate():
    rate = Rate(100, 200)
    assert sum(rate.take(1000.0) == 0.0 for _ in range(300)) == 200
    assert 0 < rate.take(1000.0) <= 0.01
    assert sum(rate.take(1000.0 + n / 1000) == 0.0 for n in range(1, 1001)) == 100


def test_what_rate_take_says_to_wait_is_enough():
    rate = Rate(10, 1)
    assert rate.take(5.0) == 0.0
    wait = rate.take(5.0)
    assert rate.take(5.0 + wait * 0.9) > 0
    assert rate.take(5.0 + wait) == 0.0


def test_rate_zero_is_no_limit():
    rate = Rate(0, 1)
    assert all(rate.take(1.0) == 0.0 for _ in range(10_000))


def test_forced_requests_count():
    rate = Rate(100, 2)
    assert rate.force(1.0) == 0.0
    assert rate.force(1.0) > 0
    assert rate.take(1.0) > 0


def test_many_forced_requests_make_a_short_pause():
    rate = Rate(100, 200)
    assert rate.force(1.0, 150) == 0.0
    assert 0.4 < rate.force(1.0, 100) < 0.6
    assert rate.force(1.0, 5000) <= DEBT_S + 1e-9
    assert rate.take(1.1 + DEBT_S) == 0.0


def test_five_seconds_above_the_rate_without_pause_are_a_flood():
    rate = Rate(100, 1)
    assert [rate.floods(10 + n * 0.5) for n in range(11)] == [False] * 10 + [True]


def test_a_pause_starts_the_count_again():
    rate = Rate(100, 1)
    for n in range(9):
        assert not rate.floods(10 + n * 0.5)
    assert not rate.floods(16.0)
    assert not rate.floods(16.5)


def test_recent_counts_a_minute():
    recent = Recent(10)
    assert not any(recent.add(float(n)) for n in range(9))
    assert recent.add(59.0)
    assert recent.wait(59.0) == 1.0
    assert not recent.add(62.5)


def test_failures_are_throttled_by_address_and_the_throttle_ends():
    failed = FailedLogins(3)
    assert [failed.fail("a", 0.0) for _ in range(3)] == [0.0] * 3
    assert failed.fail("a", 1.0) == 59.0
    assert failed.fail("b", 1.0) == 0.0
    assert failed.fail("a", 60.0) == 0.0


def test_failed_logins_remember_a_bounded_number_of_addresses():
    failed = FailedLogins(1, max_addresses=2)
    for address in "abc":
        assert failed.fail(address, 0.0) == 0.0
    assert failed.fail("c", 1.0) > 0
    assert failed.fail("a", 1.0) == 0.0
