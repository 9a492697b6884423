"""Random lives of users, devices and groups against a plain model of the promises.

The server has a cache of two conversations, a tail of three messages and batches of four records, so
that every read goes through the merge of tail and disk, and every lookup through an eviction.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outsider import JSON, MSGPACK, Outsider
from server_process import ServerProcess

pytestmark = pytest.mark.slow
USERS = 3
LONG = bool(os.environ.get("HONGYAN_TEST_LONG"))

user = st.integers(0, USERS - 1)
target = st.one_of(user, st.just("group"))
step = st.one_of(
    st.tuples(st.just("send"), user, target),
    st.tuples(st.just("send"), user, target),
    st.tuples(st.just("burst"), target, st.integers(2, 12)),
    st.tuples(st.just("resend"), user, st.integers(0, 50), st.booleans()),
    st.tuples(st.just("join"), user),
    st.tuples(st.just("leave"), user),
    st.tuples(st.just("ack"), user, target, st.integers(0, 30)),
    st.tuples(st.just("sync"), user, st.integers(1, 5)),
    st.tuples(st.just("reconnect"), user, st.sampled_from([JSON, MSGPACK])),
    st.tuples(st.just("restart"), st.booleans()),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tiny = ServerProcess(
        tmp_path_factory.mktemp("tiny"), cache_conversations=2, tail_messages=3, batch_records=4,
        rate_limit=0, membership_changes_per_minute=100_000, group_creations_per_hour=100_000,
    ).start()  # fmt: skip
    yield tiny
    tiny.kill()
    assert "Traceback" not in tiny.log, tiny.log[-4000:]


@dataclass
class Sent:
    sender: str
    seq: int
    content: Any
    key: str


@dataclass
class World:
    """The model: what everyone was promised."""

    server: ServerProcess
    tag: str
    log: dict[str, list[Sent]] = field(default_factory=dict)  # conversation key -> messages
    first: dict[str, int] = field(default_factory=dict)  # member of the group -> first_seq
    cursor: dict[tuple[str, str], int] = field(default_factory=dict)  # (user, conversation key) -> acked
    clients: dict[str, Outsider] = field(default_factory=dict)
    keys: Iterator[int] = field(default_factory=itertools.count)

    def name(self, number: int) -> str:
        return f"u{number}-{self.tag}"

    @property
    def group(self) -> str:
        return f"#g-{self.tag}"

    def address(self, target: int | str) -> str:
        return self.group if target == "group" else f"@{self.name(int(target))}"

    @staticmethod
    def key(user: str, address: str) -> str:
        return address if address[0] == "#" else "|".join(sorted((user, address[1:])))

    def visible(self, user: str, key: str) -> list[Sent]:
        if key[0] == "#":
            if user not in self.first:
                return []
            return [m for m in self.log.get(key, []) if m.seq >= self.first[user]]
        return self.log.get(key, [])

    def begins(self, user: str, key: str) -> int:
        return self.first[user] - 1 if key[0] == "#" else 0

    async def client(self, user: str, subprotocol: str = JSON) -> Outsider:
        if user not in self.clients:
            client = self.clients[user] = await Outsider.connect(self.server.url, subprotocol)
            await client.login(self.server.token(user))
        return self.clients[user]

    async def run(self, steps: list[tuple[Any, ...]]) -> None:
        try:
            for number in range(USERS):
                await self.client(self.name(number))
            await self.clients[self.name(0)].ask("create_group", {"group": self.group})
            self.first[self.name(0)] = 1
            for name, *arguments in steps:
                await getattr(self, name)(*arguments)
            await self.check()
        finally:
            for client in self.clients.values():
                await client.close()

    def posted(self, user: str, address: str, key: str) -> Sent | None:
        return next(
            (m for m in self.log.get(self.key(user, address), []) if (m.sender, m.key) == (user, key)), None
        )

    async def send(self, who: int, to: int | str) -> None:
        user, address = self.name(who), self.address(to)
        client = await self.client(user)
        if address == self.group and user not in self.first:
            error = await client.refused("send_message", {"to": address, "content_type": "t", "content": 1})
            assert error["code"] == "not_member"
            return
        key = f"k{next(self.keys)}"
        ack = await client.say(address, [user, key], key)
        log = self.log.setdefault(self.key(user, address), [])
        assert ack["data"]["seq"] == len(log) + 1
        assert ack["data"]["duplicate"] is False
        log.append(Sent(user, len(log) + 1, [user, key], key))

    async def burst(self, to: int | str, count: int) -> None:
        """Everyone at once; each sender's own order is promised, theirs among each other is not."""
        address = self.address(to)
        new: dict[str, list[Sent]] = {}
        asked = []
        for who, n in itertools.product(range(USERS), range(count)):
            user = self.name(who)
            if address == self.group and user not in self.first:
                continue
            client, key = await self.client(user), f"k{next(self.keys)}"
            asked.append((user, client, await client.post(address, n, key), n))
        last: dict[tuple[str, str], int] = {}
        for user, client, key, n in asked:
            ack = await client.reply(key)
            assert ack["type"] == "ack", ack
            conversation, seq = self.key(user, address), ack["data"]["seq"]
            assert seq > last.get((user, conversation), 0), "not in sending order"
            last[user, conversation] = seq
            new.setdefault(conversation, []).append(Sent(user, seq, n, key))
        for conversation, messages in new.items():
            log = self.log.setdefault(conversation, [])
            log.extend(sorted(messages, key=lambda m: m.seq))
            assert [m.seq for m in log] == list(range(1, len(log) + 1)), "a gap or a doubled seq"

    async def resend(self, who: int, which: int, retry: bool) -> None:
        """An old send again, with other content: the first wins, also after leaving."""
        user = self.name(who)
        own = [(key, m) for key, log in self.log.items() for m in log if m.sender == user]
        if not own:
            return
        conversation, message = own[which % len(own)]
        address = conversation
        if conversation[0] != "#":
            one, other = conversation.split("|")
            address = f"@{other if one == user else one}"
        ack = await (await self.client(user)).say(address, "changed", message.key, retry)
        assert (ack["data"]["duplicate"], ack["data"]["seq"]) == (True, message.seq)

    async def join(self, who: int) -> None:
        user = self.name(who)
        answer = await (await self.client(user)).ask("join_group", {"group": self.group})
        last = len(self.log.get(self.group, []))
        if user not in self.first:
            self.first[user] = last + 1
            self.cursor.pop((user, self.group), None)
        assert (answer["seq"], answer["first_seq"], answer["members"]) == (
            last,
            self.first[user],
            len(self.first),
        )

    async def leave(self, who: int) -> None:
        user = self.name(who)
        await (await self.client(user)).ask("leave_group", {"group": self.group})
        self.first.pop(user, None)

    async def ack(self, who: int, to: int | str, seq: int) -> None:
        user, address = self.name(who), self.address(to)
        client = await self.client(user)
        await client.send("ack", {"conversation": address, "seq": seq})
        key = self.key(user, address)
        if (key[0] == "#" and user in self.first) or (key[0] != "#" and key in self.log):
            now = self.cursor.get((user, key), self.begins(user, key))
            self.cursor[user, key] = max(now, min(seq, len(self.log.get(key, []))))

    async def sync(self, who: int, limit: int) -> None:
        user = self.name(who)
        got: dict[str, list[int]] = {}
        for item in await (await self.client(user)).sync(limit=limit):
            got.setdefault(self.key(user, item["conversation"]), []).append(item["seq"])
        expected = {}
        for key in self.log:
            if key[0] != "#" and user not in key.split("|"):
                continue
            after = self.cursor.get((user, key), 0)
            seqs = [m.seq for m in self.visible(user, key) if m.seq > after]
            if seqs:
                expected[key] = seqs
        assert got == expected

    async def reconnect(self, who: int, subprotocol: str) -> None:
        user = self.name(who)
        if user in self.clients:
            await self.clients.pop(user).close()
        await self.client(user, subprotocol)

    async def restart(self, hard: bool) -> None:
        for user in list(self.clients):
            # what was acknowledged before is settled once the connection has answered something later
            await self.clients[user].barrier()
        if hard:
            # "A crash may set [an ack] back by a second": the model asks for the cursors that came back
            self.server.kill()
        else:
            assert self.server.terminate() == 0
        for user in list(self.clients):
            await self.clients.pop(user).close()
        self.server.start()
        if hard:
            await self.cursors_may_have_moved_back()

    async def cursors_may_have_moved_back(self) -> None:
        for number in range(USERS):
            user = self.name(number)
            page = await (await self.client(user)).ask("conversations", {"limit": 500})
            for row in page["conversations"]:
                key = self.key(user, row["conversation"])
                assert row["acked_seq"] <= self.cursor.get((user, key), self.begins(user, key))
                self.cursor[user, key] = row["acked_seq"]

    async def check(self) -> None:
        """Everyone's history is exactly what the model holds, from their first_seq on."""
        for who in range(USERS):
            user = self.name(who)
            client = await self.client(user)
            for to in [*range(USERS), "group"]:
                address = self.address(to)
                if address == self.group and user not in self.first:
                    error = await client.refused("history", {"conversation": address})
                    assert error["code"] == "not_member"
                    continue
                got = [(m["from"], m["seq"], m["content"]) for m in await client.all_history(address)]
                expected = self.visible(user, self.key(user, address))
                assert got == [(m.sender, m.seq, m.content) for m in expected]


_tags = itertools.count(1)


@settings(
    max_examples=200 if LONG else 12, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(steps=st.lists(step, min_size=5, max_size=40))
def test_the_promises_hold_in_any_order_of_events(tiny: ServerProcess, steps: list[tuple[Any, ...]]) -> None:
    if tiny.process is None or tiny.process.poll() is not None:
        tiny.start()
    asyncio.run(World(tiny, str(next(_tags))).run(steps))
