"""Resends: which, when, in which order, with or without `retry`."""

from __future__ import annotations

import msgspec
import pytest

from hongyan.client.errors import RequestRefused
from hongyan.client.outbox import Outbox, Send


def box(*keys: str, in_order: bool = False, to: str = "@bob") -> Outbox:
    made = Outbox(in_order)
    for key in keys:
        made.add(Send(key, to, "text", msgspec.Raw(b'"x"')))
    return made


def out(made: Outbox, now: float = 0.0) -> list[str]:
    keys = []
    while (send := made.next(now)) is not None:
        keys.append(send.key)
    return keys


def retry_flag(made: Outbox, key: str) -> bool:
    send = next(send for send in made.all() if send.key == key)
    return "retry" in msgspec.json.decode(send.frame())["data"]


def test_pipelines_in_the_order_asked_for() -> None:
    made = box("a", "b", "c")
    assert out(made) == ["a", "b", "c"]
    assert out(made) == []


def test_after_a_loss_what_was_in_flight_goes_first_with_retry() -> None:
    made = box("a", "b", "c")
    assert made.next(0) is not None
    assert made.next(0) is not None
    made.acknowledged("a")
    made.lost()
    assert [retry_flag(made, key) for key in "bc"] == [True, False]
    assert out(made) == ["b", "c"]


@pytest.mark.parametrize(
    ("code", "flag"),
    [("rate_limited", False), ("busy", False), ("unavailable", True), ("internal", True), ("new_code", True)],
)
def test_a_refusal_for_now_is_sent_again_later(code: str, flag: bool) -> None:
    made = box("a")
    out(made)
    assert made.refused("a", RequestRefused(code, "", "backoff", retry_after_ms=2000), now=1) is None
    assert out(made, 2.9) == []
    assert out(made, 3.0) == ["a"]
    assert retry_flag(made, "a") is flag


def test_a_refusal_for_good_is_given_back() -> None:
    made = box("a")
    out(made)
    failed = made.refused("a", RequestRefused("unknown_user", ""), now=0)
    assert failed is not None
    assert failed.key == "a"
    assert len(made) == 0


def test_pauses_grow_once_a_pipeline_and_shrink_on_success() -> None:
    made = box("a", "b")
    out(made)
    busy = RequestRefused("busy", "", "backoff")
    made.refused("a", busy, now=0)
    first = made.paused_until
    made.refused("b", busy, now=0)
    assert made.paused_until == pytest.approx(2 * first, rel=1)
    out(made, 10)
    made.refused("a", busy, now=10)
    assert made.paused_until - 10 > first
    out(made, 20)
    made.acknowledged("a")
    made.refused("b", busy, now=20)
    assert made.paused_until - 20 == pytest.approx(first)


def test_in_order_nothing_overtakes_a_refused_send_of_its_conversation() -> None:
    made = box("a1", "a2", in_order=True)
    made.add(Send("c1", "#team", "text", msgspec.Raw(b"1")))
    assert out(made) == ["a1", "c1"]
    made.refused("a1", RequestRefused("busy", "", "backoff", retry_after_ms=100), now=0)
    assert out(made, 1) == ["a1"]
    made.acknowledged("a1")
    assert out(made, 1) == ["a2"]


def test_too_big_takes_the_largest_in_flight() -> None:
    made = box("a", "c")
    made.add(Send("b", "@bob", "text", msgspec.Raw(b'"' + b"x" * 100 + b'"')))
    assert made.largest_in_flight() is None
    while (send := made.next(0)) is not None:
        send.frame()
    found = made.largest_in_flight()
    assert found is not None
    assert found.key == "b"
