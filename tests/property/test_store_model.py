"""Random lives of the store against a model of plain dicts, with reopening and crashes at any point.

A crash is a copy of the files as the system has them now, which is what kill -9 leaves: opened, it must be
exactly the model as it was at the copy's offset. The cache holds two conversations, the tail ten messages, and
a write takes four rows, so that the tail is written down bit by bit while newer rows come on top.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hongyan.protocol.state import Changes, Conversation, Membership, User
from hongyan.store.rocks import RocksStore
from memory_store import MemoryStore
from store_rows import changes, everything, message

LONG = bool(os.environ.get("HONGYAN_TEST_LONG"))
USERS = ["a", "b", "bb"]
NAMES = ["#a", "#ab", "a|a", "a|b", "a|bb"]
KEYS = ["k", "\x00", "a\x00k"]

users, names, keys = st.sampled_from(USERS), st.sampled_from(NAMES), st.sampled_from(KEYS)
change = st.one_of(
    st.tuples(st.just("message"), names, users, keys, st.sampled_from([2, 50, 40_000])),
    st.tuples(st.just("message"), names, users, keys, st.just(10)),
    st.tuples(st.just("conversation"), names, st.integers(0, 9)),
    st.tuples(st.just("user"), users, st.integers(0, 9)),
    st.tuples(st.just("membership"), users, names, st.one_of(st.none(), st.integers(0, 3))),
    st.tuples(st.just("unstored"), st.integers(1, 2**63)),
    st.tuples(st.just("member"), names, st.sampled_from([1, 2, 255, 256]), st.one_of(st.none(), users)),
)


@pytest.fixture(autouse=True)
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hongyan.store.tail.UNIT_ROWS", 4)


class StoreLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.loop = asyncio.Runner()
        self.failures: list[BaseException] = []
        self.model = MemoryStore()
        self.past: dict[int, dict[str, Any]] = {0: self.said_by(self.model)}
        self.batches: list[tuple[int, Changes]] = []  # what the journal would replay
        self.store = self.opened("store")

    def opened(self, name: str) -> RocksStore:
        return RocksStore.open(
            self.root / name, "journal", cache_conversations=2, tail_messages=10, flush_interval_ms=0,
            fatal=self.failures.append,
        )  # fmt: skip

    @staticmethod
    def said_by(store: Any) -> dict[str, Any]:
        return everything(store, USERS, NAMES, KEYS)

    def merged(self, steps: list[tuple[Any, ...]]) -> Changes:
        batch = Changes()
        for kind, *rest in steps:
            if kind == "message":
                name, sender, key, size = rest
                of = batch.conversations.get(name) or self.model.conversation(name) or Conversation(0, 0)
                row = message(name, of.last_seq + 1, key, sender, size)
                made = changes(row, conversations={name: Conversation(row.seq, row.at, of.name)})
            elif kind == "conversation":
                name, number = rest
                of = batch.conversations.get(name) or self.model.conversation(name) or Conversation(0, 0)
                row_ = Conversation(of.last_seq, of.last_at, f"n{number}")
                made = changes(conversations={name: row_} if name[0] == "#" else {})
            elif kind == "unstored":
                batch.unstored += rest
                continue
            elif kind == "user":
                made = changes(users={rest[0]: User(rest[1])})
            elif kind == "membership":
                user, name, number = rest
                of = batch.conversations.get(name) or self.model.conversation(name)
                if name[0] != "#" and not (number and of and user in name.split("|")):
                    continue  # of a direct chat's two users, there from its first message on and for good
                row_ = Membership(1, 0, number, {number: 1}) if number is not None else None
                made = changes(memberships={(user, name): row_})
            else:
                made = changes(members={(rest[0], rest[1]): rest[2]})
            batch.messages += made.messages
            for into, new in (
                (batch.conversations, made.conversations), (batch.directs, made.directs), (batch.users, made.users),
                (batch.memberships, made.memberships), (batch.members, made.members),
            ):  # fmt: skip
                into.update(new)  # type: ignore[attr-defined]
        return batch

    @rule(steps=st.lists(change, max_size=6), records=st.integers(1, 3))
    def apply(self, steps: list[tuple[Any, ...]], records: int) -> None:
        batch, offset = self.merged(steps), self.model.offset + records

        async def on_the_loop() -> None:
            self.store.apply(offset, deepcopy(batch))  # it owns what it is given

        self.loop.run(on_the_loop())
        self.model.apply(offset, batch)
        self.batches.append((offset, batch))
        self.past[offset] = self.said_by(self.model)

    @rule(turns=st.integers(1, 5))
    def let_the_loop_turn(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run(turn())

    @rule()
    def sync(self) -> None:
        assert self.loop.run(self.store.sync()) == self.model.offset

    @rule()
    def reopen(self) -> None:
        self.loop.run(self.store.close())
        self.store = self.opened("store")

    @rule()
    def crash(self) -> None:
        shutil.rmtree(self.root / "crashed", ignore_errors=True)
        shutil.copytree(self.root / "store", self.root / "crashed")
        crashed = self.opened("crashed")
        assert crashed.offset == self.store.on_disk
        assert self.said_by(crashed) == self.past[crashed.offset]
        self.loop.run(crashed.close())

    @precondition(lambda self: self.store.on_disk < self.store.offset)
    @rule()
    def crash_and_replay(self) -> None:
        """The crashed copy takes the place of the store, and the journal's part is applied again."""
        missing = [(offset, batch) for offset, batch in self.batches if offset > self.store.on_disk]
        self.crash()
        self.loop.run(self.store.close())
        shutil.rmtree(self.root / "store")
        (self.root / "crashed").rename(self.root / "store")
        self.store = self.opened("store")

        async def replay() -> None:
            for offset, batch in missing:
                self.store.apply(offset, deepcopy(batch))  # it owns what it is given

        self.loop.run(replay())

    @invariant()
    def says_what_the_model_says(self) -> None:
        assert self.said_by(self.store) == self.past[self.model.offset]
        assert not self.failures

    def teardown(self) -> None:
        self.loop.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.root)


StoreLife.TestCase.settings = settings(
    max_examples=300 if LONG else 25, stateful_step_count=50 if LONG else 25, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestStoreLife = StoreLife.TestCase
