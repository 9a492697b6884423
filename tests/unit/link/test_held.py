"""What a gateway holds without an answer."""

from __future__ import annotations

from hongyan.link.held import Held
from hongyan.link.messages import Send


def send(session: int, ref: str, content: bytes = b"1") -> Send:
    return Send(session, ref, "@b", "text", content, False)


def test_in_order_and_each_once() -> None:
    held = Held()
    for number in range(5):
        held.add(send(1, f"r{number}"))
    assert held.take(1, "r2")
    assert not held.take(1, "r2")
    assert not held.take(2, "r1")
    assert [each.ref for each in held.sends()] == ["r0", "r1", "r3", "r4"]
    assert len(held) == 4


def test_a_name_sent_twice_has_two_answers() -> None:
    held = Held()
    held.add(send(1, "r", b"first"))
    held.add(send(1, "s"))
    held.add(send(1, "r", b"second"))
    assert [each.content for each in held.sends()] == [b"first", b"1", b"second"]
    assert held.take(1, "r")
    again = held.get(1, "r")
    assert again is not None
    assert again.content == b"second"
    assert held.take(1, "r")
    assert not held.take(1, "r")


def test_old_ones_are_taken_out() -> None:
    held = Held()
    for at in (1.0, 2.0, 3.0):
        held.now = at
        held.add(send(1, f"at{at}"))
    assert held.take_before(2.5) == [(1, "at1.0"), (1, "at2.0")]
    assert [each.ref for each in held.sends()] == ["at3.0"]


def test_bounded_in_bytes(monkeypatch) -> None:
    monkeypatch.setattr("hongyan.link.held.MAX_BYTES", 1000)
    held = Held()
    held.add(send(1, "a", b"x" * 2000))
    assert held.full
    held.take(1, "a")
    assert not held.full
