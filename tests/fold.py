"""The fold alone: a sequencer over a store of dicts, one record a call, or batches."""

from __future__ import annotations

from collections.abc import Sequence

from hongyan.engine.sequencer import Sequencer
from hongyan.engine.window import Window
from hongyan.protocol import records
from hongyan.protocol.names import direct_key
from hongyan.protocol.outcomes import Outcome
from memory_store import MemoryStore


class Fold:
    """`now` is the time of the next record, in ms; nothing moves it but the test."""

    def __init__(self, span_ms: int = 300_000, limit: int = 200_000) -> None:
        self.store = MemoryStore()
        self.window = Window(span_ms, limit)
        self.sequencer = Sequencer(self.store, self.window)
        self.now = 1_000_000
        self.ids = 0

    def batch(self, batch: Sequence[records.Record], log_ms: int | None = None) -> list[Outcome]:
        first = self.store.offset + 1
        outcomes = self.sequencer.fold(batch, first, self.now if log_ms is None else log_ms)
        self.store.apply(first + len(batch) - 1, self.sequencer.changes)
        return outcomes

    def id(self) -> int:
        self.ids += 1
        return self.ids

    def login(
        self, user: str, device: str = "d", max_devices: int = 100, in_use: Sequence[str] = ()
    ) -> Outcome:
        record = records.Login(self.id(), self.now, user, device, "", max_devices, list(in_use))
        return self.batch([record])[0]

    def send(self, sender: str, to: str, key: str, retry: bool = False, at: int | None = None) -> Outcome:
        name = to if to[0] == "#" else direct_key(sender, to)
        at = self.now if at is None else at
        return self.batch([records.Send(self.id(), at, sender, name, key, "text", b'"x"', retry)])[0]

    def create(self, user: str, group: str = "#g", join: str = "open") -> Outcome:
        return self.batch([records.CreateGroup(self.id(), self.now, user, group, "", join)])[0]

    def join(self, user: str, group: str = "#g", members: int = 100, groups: int = 100) -> Outcome:
        return self.batch([records.Join(self.id(), self.now, user, group, members, groups)])[0]

    def leave(self, user: str, group: str = "#g") -> Outcome:
        return self.batch([records.Leave(self.id(), self.now, user, group)])[0]

    def ack(self, user: str, conversation: str, seq: int, device: str = "d") -> None:
        self.batch([records.Cursors(self.id(), self.now, [(user, device, {conversation: seq})], [])])
