"""Who is logged in: sessions by number and by (user, device)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

Owner = tuple[str, str]  # user, device


class SyncState(NamedTuple):
    """A `sync_offline` under way: where each conversation with news started when it was asked.

    `name` tells this sync's pages from those of an earlier one. Fixed at the first page, so that
    acknowledgements and new cursors do not change it (protocol.md, "Cursors and sync").
    """

    name: int
    starts: list[tuple[str, int]]
    cursors: Mapping[str, int]
    rest: str | None  # the key to walk on from, where there were too many to note at once


class Session:
    """One logged-in connection of (user, device). `device_number` names the device in cursors."""

    __slots__ = (
        "device",
        "device_number",
        "number",
        "owner",
        "session_id",
        "subscriptions",
        "sync",
        "syncs",
        "user",
    )

    def __init__(self, number: int, user: str, device: str, device_number: int, session_id: str) -> None:
        self.number = number
        self.user = user
        self.device = device
        self.owner = (user, device)  # whose cursors its acknowledgements move
        self.device_number = device_number
        self.session_id = session_id
        self.subscriptions: set[str] | None = None  # users whose presence this connection follows
        self.sync: SyncState | None = None
        self.syncs = 0


class Sessions:
    """The table. A (user, device) has one session at most."""

    def __init__(self) -> None:
        self.by_number: dict[int, Session] = {}
        self._by_user: dict[str, dict[str, Session]] = {}

    def __len__(self) -> int:
        return len(self.by_number)

    def get(self, number: int) -> Session | None:
        return self.by_number.get(number)

    def of(self, user: str, device: str) -> Session | None:
        return self._by_user.get(user, {}).get(device)

    def online(self, user: str) -> bool:
        return user in self._by_user

    def devices(self, user: str) -> Collection[str]:
        """The devices of the user that are online."""
        return self._by_user.get(user, {}).keys()

    def add(self, session: Session) -> None:
        self.by_number[session.number] = session
        self._by_user.setdefault(session.user, {})[session.device] = session

    def remove(self, session: Session) -> None:
        """Idempotent; leaves a newer session of the same device alone."""
        self.by_number.pop(session.number, None)
        devices = self._by_user.get(session.user)
        if devices is not None and devices.get(session.device) is session:
            del devices[session.device]
            if not devices:
                del self._by_user[session.user]
