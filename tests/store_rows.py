"""Short makers of rows and batches for the tests of the store, and everything that can be asked of one."""

from __future__ import annotations

import itertools
from typing import Any

from hongyan.protocol.state import Changes, Conversation, Membership, Message, User
from hongyan.store.base import Store


def message(conversation: str, seq: int, key: str = "", sender: str = "alice", size: int = 10) -> Message:
    content = b'"' + b"x" * (size - 2) + b'"'
    return Message(conversation, seq, seq << 22, seq, sender, key or f"k{seq}", "text", content)


def changes(
    *messages: Message,
    conversations: dict[str, Conversation] | None = None,
    users: dict[str, User] | None = None,
    memberships: dict[tuple[str, str], Membership | None] | None = None,
    members: dict[tuple[str, int], str | None] | None = None,
) -> Changes:
    """As the sequencer makes them: a message comes with its conversation's new row, a
    direct chat's first with both memberships."""
    made = Changes()
    for row in messages:
        made.messages.append(row)
        made.conversations[row.conversation] = Conversation(row.seq, row.at)
        if row.seq == 1 and row.conversation[0] != "#":
            made.directs[row.conversation] = row.at
    made.conversations.update(conversations or {})
    made.users.update(users or {})
    made.memberships.update(memberships or {})
    made.members.update(members or {})
    return made


def page_through(page: Any, start: Any, size: int) -> list[Any]:
    """Everything that `page(after, size)` gives, page after page."""
    found: list[Any] = []
    while rows := page(found[-1][0] if found else start, size):
        assert len(rows) <= size
        found += rows
    return found


def everything(
    store: Store, users: list[str], conversations: list[str], keys: list[str], page: int = 2
) -> dict[str, Any]:
    """All that a store says about these names, comparable."""
    said: dict[str, Any] = {"offset": store.offset}
    said["unstored"] = [store.unstored(offset) for offset in range(store.offset + 1)]
    for user in users:
        said[f"user {user}"] = store.user(user)
        said[f"memberships {user}"] = page_through(
            lambda after, size, user=user: store.memberships(user, after, size), "", page
        )
        said[f"groups {user}"] = store.memberships(user, groups=True)
        for name in conversations:
            said[f"membership {user} {name}"] = store.membership(user, name)
    said["conversations"] = store.conversations(conversations)
    for name in conversations:
        said[f"conversation {name}"] = of = store.conversation(name)
        last = of.last_seq if of is not None else 0
        said[f"members {name}"] = page_through(
            lambda after, size, name=name: store.members(name, after, size), 0, page
        )
        said[f"messages {name}"] = walked = []  # in steps: a call is bounded in bytes
        while found := store.messages(name, len(walked) + 1, last + 5, last + 5):
            walked += found
        said[f"newest {name}"] = store.messages(name, 1, last, page, newest=True)
        said[f"middle {name}"] = store.messages(name, last // 3, last // 2, page)
        for user, key in itertools.product(users, keys):
            said[f"find {user} {name} {key!r}"] = store.find(user, name, key)
    return said
