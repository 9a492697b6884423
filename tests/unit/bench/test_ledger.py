"""The check must find every way in which a message can go wrong, and nothing where none does."""

from __future__ import annotations

import random

from hongyan.bench.ledger import MOST, Ledger

C = b"@bob"


def heard(*seqs: int) -> Ledger:
    ledger = Ledger("alice")
    for seq in seqs:
        ledger.take(C, seq)
    return ledger


def test_each_once_and_in_order_is_fine() -> None:
    ledger = heard(1, 2, 3)
    assert ledger.take(b"#team", 1)
    assert (ledger.broken, ledger.breaches) == (0, [])


def test_lost_doubled_and_reordered_are_found() -> None:
    assert str(heard(1, 3).breaches[0]) == "alice got seq 3 of @bob after a gap: 2 was next"
    assert str(heard(1, 1).breaches[0]) == "alice got seq 1 of @bob again or out of order: 2 was next"
    assert heard(1, 3, 2).broken == 2
    assert heard(2).broken == 1, "the first is missing"
    assert heard(1, 3, 4, 5).broken == 1, "one gap is one breach"


def test_many_breaches_are_counted_and_some_kept() -> None:
    ledger = heard(*[1] * 101)
    assert ledger.broken == 100
    assert len(ledger.breaches) == MOST


def test_while_catching_up_pushes_may_be_ahead_and_come_again() -> None:
    ledger = heard(1, 2)
    ledger.catching_up = True
    assert not ledger.take(C, 5)
    assert not ledger.take(C, 2)
    assert ledger.take(C, 3)
    assert ledger.take(C, 4)
    assert ledger.last[C] == 5
    ledger.caught_up()
    assert ledger.broken == 0
    assert ledger.take(C, 6)


def test_what_is_still_missing_after_the_sync_is_found() -> None:
    ledger = heard(1)
    ledger.catching_up = True
    ledger.take(C, 4)
    ledger.take(C, 2)
    ledger.caught_up()
    assert str(ledger.breaches[0]) == "alice got seq 4 of @bob after a gap: 3 was next"


def test_any_order_while_catching_up_comes_to_the_same() -> None:
    for seed in range(200):
        rnd = random.Random(seed)
        ledger = Ledger("alice")
        ledger.catching_up = True
        seqs = [*range(1, 20), *rnd.choices(range(1, 20), k=10)]
        rnd.shuffle(seqs)
        fresh = sum(ledger.take(C, seq) for seq in seqs)
        ledger.caught_up()
        assert (ledger.last[C], ledger.broken, ledger.ahead) == (19, 0, {})
        assert fresh <= 19
