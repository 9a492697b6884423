"""Which link carries which topic: whom an outcome has to reach. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

LinkT = TypeVar("LinkT")


class Carried(Generic[LinkT]):
    """A session as the router knows it: its link, and the topics that the link carries for it."""

    __slots__ = ("device", "link", "replaced", "session", "topics", "user")

    def __init__(self, link: LinkT, session: int, user: str, device: str) -> None:
        self.link = link
        self.session = session
        self.user = user
        self.device = device
        self.topics: set[str] = set()
        self.replaced = False


class Topics(Generic[LinkT]):
    """Counted: a link carries a topic as long as one of its sessions does."""

    def __init__(self) -> None:
        self._links: dict[str, dict[LinkT, int]] = {}
        self._of_user: dict[str, set[Carried[LinkT]]] = {}

    def __len__(self) -> int:
        return len(self._links)

    def links(self, topic: str) -> Iterable[LinkT]:
        return self._links.get(topic, ())

    @property
    def table(self) -> Mapping[str, Mapping[LinkT, int]]:
        """Topic -> links that carry it."""
        return self._links

    def sessions(self, user: str) -> Iterable[Carried[LinkT]]:
        return self._of_user.get(user, ())

    def enter(self, carried: Carried[LinkT]) -> None:
        """From here on what is for the user reaches the session's link."""
        self._of_user.setdefault(carried.user, set()).add(carried)
        self.add(carried, f"@{carried.user}")

    def add(self, carried: Carried[LinkT], topic: str) -> None:
        """Idempotent."""
        if topic not in carried.topics:
            carried.topics.add(topic)
            counts = self._links.setdefault(topic, {})
            counts[carried.link] = counts.get(carried.link, 0) + 1

    def drop(self, carried: Carried[LinkT], topic: str) -> None:
        """Idempotent."""
        if topic in carried.topics:
            carried.topics.discard(topic)
            counts = self._links[topic]
            counts[carried.link] -= 1
            if not counts[carried.link]:
                del counts[carried.link]
                if not counts:
                    del self._links[topic]

    def leave(self, carried: Carried[LinkT]) -> None:
        """The session is gone. Idempotent."""
        for topic in tuple(carried.topics):
            self.drop(carried, topic)
        sessions = self._of_user.get(carried.user)
        if sessions is not None:
            sessions.discard(carried)
            if not sessions:
                del self._of_user[carried.user]
