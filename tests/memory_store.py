"""A store of plain dicts: the model that the real one is held against, and the engine's in unit tests."""

from __future__ import annotations

from collections.abc import Collection

from hongyan.protocol.state import Changes, Conversation, Membership, Message, Sent, User, opened


class MemoryStore:
    """Implements `hongyan.store.base.Store`; durable as long as the process."""

    def __init__(self) -> None:
        self.offset = 0
        self.full = False
        self.refusing = False
        self.chats: dict[str, Conversation] = {}
        self.users: dict[str, User] = {}
        self.rows: dict[tuple[str, str], Membership] = {}
        self.places: dict[tuple[str, int], str] = {}
        self.log: dict[str, list[Message]] = {}
        self.sent: dict[tuple[str, str, str], Sent] = {}
        self.without: dict[int, list[int]] = {}

    def apply(self, offset: int, changes: Changes) -> None:
        assert offset > self.offset
        self.offset = offset
        for message in changes.messages:
            kept = self.log.setdefault(message.conversation, [])
            assert message.seq == len(kept) + 1, "a gap or a repeat in seq"
            kept.append(message)
            at = (message.sender, message.conversation, message.key)
            self.sent[at] = Sent(message.seq, message.id, message.at)
        self.chats.update(changes.conversations)
        self.users.update(changes.users)
        for name, since in changes.directs.items():
            for user in name.split("|"):
                self.rows[user, name] = opened(since)
        for at, row in changes.memberships.items():
            if row is None:
                self.rows.pop(at, None)
            else:
                self.rows[at] = row
        if changes.unstored:
            self.without[offset] = list(changes.unstored)
        for place, user in changes.members.items():
            if user is None:
                self.places.pop(place, None)
            else:
                self.places[place] = user

    def conversation(self, key: str) -> Conversation | None:
        return self.chats.get(key)

    def conversations(self, names: Collection[str]) -> dict[str, Conversation]:
        return {name: self.chats[name] for name in names if name in self.chats}

    def user(self, user: str) -> User | None:
        return self.users.get(user)

    def membership(self, user: str, conversation: str) -> Membership | None:
        return self.rows.get((user, conversation))

    def find(self, sender: str, conversation: str, key: str) -> Sent | None:
        return self.sent.get((sender, conversation, key))

    def unstored(self, offset: int) -> list[int]:
        return self.without.get(offset, [])

    def forget(self, upto: int) -> None:
        self.without = {offset: ids for offset, ids in self.without.items() if offset > upto}

    def members(self, group: str, after: int = 0, limit: int = 1000) -> list[tuple[int, str]]:
        found = sorted((place, user) for (name, place), user in self.places.items() if name == group)
        return [entry for entry in found if entry[0] > after][:limit]

    def memberships(
        self, user: str, after: str = "", limit: int = 1000, groups: bool = False
    ) -> list[tuple[str, Membership]]:
        mine = [(key, row) for (owner, key), row in self.rows.items() if owner == user and key > after]
        found = sorted(pair for pair in mine if not groups or pair[0][0] == "#")
        return found[:limit]

    def messages(
        self, conversation: str, low: int, high: int, limit: int, newest: bool = False
    ) -> list[Message]:
        found = [message for message in self.log.get(conversation, ()) if low <= message.seq <= high]
        return found[-limit:] if newest else found[:limit]

    async def sync(self) -> int:
        return self.offset

    async def close(self) -> None:
        pass

    def snapshot(self) -> tuple[object, ...]:
        """Everything it holds, comparable."""
        return (
            self.offset, dict(self.chats), dict(self.users), dict(self.rows), dict(self.places),
            {key: list(kept) for key, kept in self.log.items()}, dict(self.sent), dict(self.without),
        )  # fmt: skip
