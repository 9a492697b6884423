"""Senders in a group and in direct chats, and the account of what they were promised."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from outsider import Envelope, Outsider
from server_process import ServerProcess

SEVERAL_IF_LONG = [1, 4] if os.environ.get("HONGYAN_TEST_LONG") else [1]  # workers
GROUP = "#crowd"
IN_FLIGHT = 20
Post = tuple[str, str, str]  # sender, address, key
GONE = (ConnectionClosed, InvalidHandshake, OSError, TimeoutError)


class Workload:
    """What was sent and acknowledged, over any number of crashes."""

    def __init__(self, server: ServerProcess, users: int = 6, seed: int = 1) -> None:
        self.server = server
        self.users = [f"u{n}" for n in range(users)]
        self.random = random.Random(seed)
        self.sent: dict[Post, Any] = {}
        self.acked: dict[Post, int] = {}
        self.firsts: dict[str, int] = {}  # member -> first_seq it was told
        self.devices: set[tuple[str, str]] = set()

    async def open(self, user: str, device: str = "d1") -> Outsider:
        client = await Outsider.connect(self.server.url)
        try:
            await client.login(self.server.token(user), device)
        except BaseException:  # the server may end in between
            client.abort()
            raise
        self.devices.add((user, device))
        return client

    async def prepare(self) -> None:
        for user in self.users:
            client = await self.open(user)
            made = await client.ask("create_group" if not self.firsts else "join_group", {"group": GROUP})
            self.firsts[user] = made["first_seq"]
            await client.close()

    def take(self, user: str, answer: Envelope, waiting: dict[str, Post]) -> None:
        post = waiting.pop(answer["data"]["ref"])
        if answer["type"] == "ack":
            seq = answer["data"]["seq"]
            assert self.acked.setdefault(post, seq) == seq, (
                f"{post}: another seq than it was acknowledged with"
            )
        else:
            assert answer["data"]["code"] in ("unavailable", "busy", "rate_limited"), answer

    async def resend(self, user: str, client: Outsider) -> int:
        """Every unanswered send once more, with `retry`, until all are acknowledged."""
        open_ = [post for post in self.sent if post[0] == user and post not in self.acked]
        resent = len(open_)
        while open_:
            for start in range(0, len(open_), IN_FLIGHT):
                waiting = {}
                for post in open_[start : start + IN_FLIGHT]:
                    waiting[await client.post(post[1], self.sent[post], post[2], retry=True)] = post
                for ref in list(waiting):
                    self.take(user, await client.reply(ref), waiting)
            open_ = [post for post in open_ if post not in self.acked]
            if open_:
                await asyncio.sleep(0.2)  # the backoff the server asks for
        return resent

    async def sender(self, user: str) -> None:
        """Resend, then send on with `IN_FLIGHT` in flight, until the connection ends."""
        try:
            client = await self.open(user)
        except GONE:
            return
        waiting: dict[str, Post] = {}
        try:
            await self.resend(user, client)
            while True:
                while len(waiting) < IN_FLIGHT:
                    to = GROUP if self.random.random() < 0.5 else f"@{self.random.choice(self.users)}"
                    post = (user, to, f"{user}.{len(self.sent)}")
                    self.sent[post] = {"n": len(self.sent), "pad": "x" * self.random.randrange(300)}
                    waiting[post[2]] = post
                    await client.post(to, self.sent[post], post[2])
                answer = await client.until(lambda e: e["data"].get("ref") in waiting)
                self.take(user, answer, waiting)
                client.unread.clear()
        except GONE:
            pass
        finally:
            client.abort()

    async def run_until(self, end: asyncio.Event) -> None:
        """Full load; `end` is set by whoever kills the server, which ends every connection."""
        senders = [asyncio.create_task(self.sender(user)) for user in self.users]
        await end.wait()
        await asyncio.gather(*senders)

    async def crash_after(self, acks: int, kill: Any) -> None:
        """Load until that many more acks have come, then `kill()` in the middle of it."""
        goal = len(self.acked) + acks
        end = asyncio.Event()
        load = asyncio.create_task(self.run_until(end))
        async with asyncio.timeout(60):
            while len(self.acked) < goal:
                assert not load.done()
                await asyncio.sleep(0.005)
        kill()
        end.set()
        await load

    async def settle_and_check(self) -> None:
        """After a restart: resend, then compare everybody's history with what was promised."""
        for user in self.users:
            client = await self.open(user)
            await self.resend(user, client)
            await client.close()
        assert set(self.acked) == set(self.sent)
        for user in self.users:
            await self._check(user)

    async def _check(self, user: str) -> None:
        client = await self.open(user)
        known = {row["conversation"]: row for row in (await client.ask("conversations"))["conversations"]}
        assert known[GROUP]["first_seq"] == self.firsts[user], "the membership was lost"
        for address in [GROUP, *(f"@{peer}" for peer in self.users)]:
            first = self.firsts[user] if address == GROUP else 1
            items = await client.all_history(address)
            assert [m["seq"] for m in items] == list(range(first, first + len(items))), (
                "a gap or a doubled seq"
            )
            found = {}
            for item in items:
                if item["from"] == user:
                    post = (user, address, item["key"])
                    assert post not in found, f"{post} is there twice"
                    found[post] = (item["seq"], item["content"])
            promised = {
                post: (seq, self.sent[post]) for post, seq in self.acked.items()
                if post[:2] == (user, address)
            }  # fmt: skip
            assert found == promised, f"{user} in {address}: lost, moved or changed"
        await client.close()
