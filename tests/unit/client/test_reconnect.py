"""Close codes and delays; the client's own pace."""

from __future__ import annotations

import pytest

from hongyan.client.errors import Kicked, Replaced
from hongyan.client.pace import Pace
from hongyan.client.reconnect import MAX_HINT_S, Backoff, final, retry_hint


@pytest.mark.parametrize(("code", "error"), [(4403, Kicked), (4409, Replaced)])
def test_kicked_and_replaced_are_final(code: int, error: type[Exception]) -> None:
    assert isinstance(final(code, "why"), error)


@pytest.mark.parametrize("code", [1001, 1006, 1008, 1009, 1011, 1012, 1013, 4401, 4408, 4429, 4430, 4999])
def test_others_are_not_final(code: int) -> None:
    assert final(code, "") is None


def test_hint_in_the_reason() -> None:
    assert retry_hint("retry_after_ms=1234") == 1.234
    assert retry_hint("service restart, retry_after_ms=20") == 0.02
    assert retry_hint("retry_after_ms=999999999") == MAX_HINT_S
    assert retry_hint("retry_after_ms=soon") is None


def test_backoff_doubles_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(lambda: 0.0, first=1, most=8)
    assert [backoff.delay() for _ in range(5)] == [0.5, 1, 2, 4, 4]
    backoff.reset()
    assert backoff.delay() == 0.5
    assert backoff.delay(hint=3.0) == 3.0
    assert Backoff(lambda: 0.999, first=1).delay() < 1


def test_pace_gives_a_burst_then_a_rate() -> None:
    pace = Pace(10, 3)
    now, sent = 0.0, []
    for _ in range(6):
        now = pace.ready_at(now)
        assert pace.ready_at(now) <= now
        pace.spend()
        sent.append(round(now, 3))
    assert sent == [0, 0, 0, 0.1, 0.2, 0.3]


def test_pace_without_a_rate_never_waits() -> None:
    pace = Pace(None, 1)
    for _ in range(10):
        assert pace.ready_at(5.0) == 5.0
        pace.spend()
