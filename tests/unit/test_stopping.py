"""One deadline for the whole stop; a second signal does not wait for it."""

from __future__ import annotations

import signal
import threading

import pytest

from hongyan.stopping import EXIT_DEADLINE, Stop


def test_the_second_signal_ends_at_once_but_not_the_first_delivered_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, left = list[bool](), list[int]()
    stop = Stop(600, lambda: begun.append(True), left.append)
    stop.on_signal(signal.SIGTERM)
    stop.on_signal(signal.SIGTERM)
    assert (begun, left) == ([True], [])
    monkeypatch.setattr("hongyan.stopping.REPEAT_S", 0)
    stop.on_signal(signal.SIGINT)
    assert (begun, left) == ([True], [130])


def test_at_the_deadline_the_process_leaves() -> None:
    left, gone = list[int](), threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        gone.set()

    Stop(0.05, lambda: None, leave).on_signal(signal.SIGTERM)
    assert gone.wait(10)
    assert left == [EXIT_DEADLINE]


def test_a_share_is_of_the_whole_and_no_more_than_is_left() -> None:
    stop = Stop(100, lambda: None, lambda code: None)
    assert stop.left(0.6) == 60
    stop.on_signal(signal.SIGTERM)
    assert 0 < stop.left(1) <= 100
    assert stop.left(0.1) == 10
