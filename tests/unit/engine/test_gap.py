"""What is told again after an engine's death: exactly what was stored, and those that cannot be told come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hongyan.engine import gap as gaps
from hongyan.engine.gap import gap_after
from hongyan.engine.sequencer import Sequencer
from hongyan.engine.window import Window
from hongyan.journal.base import Entry
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import CreateGroup, Invite, Join, Login, Record, Send
from hongyan.protocol.state import Message
from memory_store import MemoryStore


class Log:
    """A journal's reading side, and the fold over it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.sequencer = Sequencer(self.store, Window(300_000, 1000))
        self.entries: list[Entry] = []
        self.first = 1
        self.outcomes: dict[int, Outcome] = {}

    @property
    def last(self) -> int:
        return self.entries[-1].last if self.entries else 0

    def read(self, after: int):
        return iter([entry for entry in self.entries if entry.last > after])

    def batch(self, *records: Record, fold: bool = True) -> None:
        entry = Entry(self.last + 1, 1, list(records))
        self.entries.append(entry)
        if fold:
            outcomes = self.sequencer.fold(entry.records, entry.first, entry.log_ms)
            self.store.apply(entry.last, self.sequencer.changes)
            self.outcomes.update(enumerate(outcomes, entry.first))

    def stored(self, after: int) -> list[Message]:
        return [
            outcome
            for at, outcome in sorted(self.outcomes.items())
            if at > after and isinstance(outcome, Message)
        ]


ids = iter(range(1, 10_000))


def send(sender: str, to: str, key: str, retry: bool = False) -> Send:
    return Send(next(ids), 1, sender, to, key, "text", b'"x"', retry)


@pytest.fixture
def log() -> Log:
    made = Log()
    made.batch(
        *[Login(next(ids), 1, user, "d", "") for user in "ab"],
        CreateGroup(next(ids), 1, "a", "#g", "", "open"),
    )
    return made


def told(log: Log, offset: int) -> gaps.Gap:
    found = gap_after(log, log.store, offset)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_every_offset_gets_exactly_what_was_stored_behind_it(log: Log) -> None:
    log.batch(
        send("a", "a|b", "1"), send("b", "a|b", "1"), send("a", "a|b", "1"), send("b", "#g", "no member")
    )
    log.batch(send("a", "#g", "2"), send("a", "a|b", "1", retry=True), send("x", "a|b", "no user"))
    start = log.entries[0].last
    for offset in range(start, log.last + 1):
        found = told(log, offset)
        assert list(found.messages) == log.stored(offset)
        assert not found.away
        assert not found.resync


def test_what_is_durable_and_not_folded_is_told_in_its_turn(log: Log) -> None:
    offset = log.last
    log.batch(send("a", "a|b", "1"))
    log.batch(send("a", "a|b", "2"), fold=False)
    assert [message.key for message in told(log, offset).messages] == ["1"]


def test_changes_of_membership_send_their_users_away_and_say_so_to_the_group(log: Log) -> None:
    offset = log.last
    log.batch(Join(next(ids), 1, "b", "#g", 10, 10), send("b", "#g", "1"))
    found = told(log, offset)
    assert set(found.away) == {"@b"}
    assert set(found.resync) == {"#g"}
    assert [message.key for message in found.messages] == ["1"]


def test_a_message_that_is_not_found_sends_its_conversation_away(log: Log) -> None:
    offset = log.last
    log.batch(send("a", "a|b", "1"))
    log.sequencer = Sequencer(log.store, Window(0, 1))  # what was forgotten may be stored twice
    log.batch(send("a", "a|b", "1"))
    found = told(log, offset)
    assert set(found.away) == {"@a", "@b"}
    assert [message.seq for message in found.messages] == [2]


def trimmed(log: Log) -> None:
    log.first = log.last + 1


@pytest.mark.parametrize(
    ("offset", "change"), [(2, trimmed), (10**6, lambda log: None), (-1, lambda log: None)]
)
def test_what_the_journal_cannot_say(log: Log, offset: int, change: Callable[[Log], None]) -> None:
    change(log)
    assert gap_after(log, log.store, offset) is None  # type: ignore[arg-type]


def test_too_much_is_not_told(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "MAX_RECORDS", 2)
    offset = log.last
    more: Sequence[Send] = [send("a", "a|b", str(n)) for n in range(3)]
    log.batch(*more)
    assert gap_after(log, log.store, offset) is None  # type: ignore[arg-type]
    assert len(told(log, offset + 1).messages) == 2
    monkeypatch.setattr(gaps, "MAX_RECORDS", 100)
    monkeypatch.setattr(gaps, "MAX_TOPICS", 3)
    log.batch(Invite(9, 9, "a", "#g", [f"u{n}" for n in range(4)]))
    assert gap_after(log, log.store, offset) is None  # type: ignore[arg-type]
