"""What a run makes of what its processes have heard."""

from __future__ import annotations

from typing import Any

import pytest

from hongyan.bench.plan import Plan
from hongyan.bench.run import Run

Heard = dict[str, tuple[int, int, int]]


def unheard(heard: list[Heard], acked: int, unanswered: int = 0, **plan: Any) -> list[str]:
    made = Plan("mixed", "ws://127.0.0.1:1/ws", 6, 1, 0, "b", 1, **plan)
    run = Run(made, 1, ["t"] * 6, None, lambda phase, second: None)
    run._results = [
        {"problems": [], "heard": each, "acked": acked, "unanswered": unanswered} for each in heard
    ]
    return run._unheard()


def test_all_have_heard_all() -> None:
    assert unheard([{"#g": (10, 10, 3), "a|b": (4, 4, 1)}, {"#g": (10, 10, 2), "a|b": (4, 4, 1)}], 7) == []
    assert unheard([{"#g": (10, 10, 5)}], 9, unanswered=1) == [], "its answer may have been lost"


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ([{"#g": (10, 10, 4)}, {"#g": (0, 0, 1)}], "of #g one has heard up to seq 0, another up to 10"),
        ([{"#g": (10, 10, 4)}, {"#g": (9, 9, 1)}], "of #g one has heard up to seq 9, another up to 10"),
        ([{"a|b": (10, 10, 1)}], "of a|b one has heard up to seq 10, the other nothing"),
    ],
)
def test_somebody_has_not(heard: list[Heard], said: str) -> None:
    assert unheard(heard, 10 // len(heard)) == [said]


@pytest.mark.parametrize("acked", [9, 11])
def test_stored_twice_or_never(acked: int) -> None:
    """A resend that was stored again has a seq of its own: nobody hears anything twice."""
    (problem,) = unheard([{"a|b": (10, 10, 2)}], acked)
    assert f"10 messages were stored, and {acked} were acknowledged" in problem
    assert unheard([{"a|b": (10, 10, 2)}], acked, users=["a", "b"]) == [], "these may have a past"
