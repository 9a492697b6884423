"""Who is logging in, and whether the device is one of the user's: decided by the fold, like everything that lasts
(docs/design/cursors.md, "Where a device starts" and "Which device is forgotten")."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from hongyan.config import Settings
from hongyan.engine.commands import raise_rejected
from hongyan.engine.committer import Submit
from hongyan.engine.sessions import Sessions
from hongyan.errors import Refused, refused
from hongyan.ids import Snowflake
from hongyan.metrics import Counters
from hongyan.protocol import records
from hongyan.store.base import Store


class Logins:
    """The logins under way. `flush_user` writes what the user's devices have acknowledged."""

    def __init__(
        self, settings: Settings, sessions: Sessions, store: Store, submit: Submit,
        flush_user: Callable[[str, Iterable[str]], Coroutine[Any, Any, None]], snowflake: Snowflake,
        counters: Counters, now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._submit = submit
        self._flush_user = flush_user
        self._snowflake = snowflake
        self._counters = counters
        self._now_ms = now_ms
        self._logging_in: dict[str, dict[int, str]] = {}  # user -> session number -> device
        self._logging_in_of: dict[int, str] = {}  # session number -> user
        # user -> the newest Login record that is not decided: it may forget a device that comes back meanwhile
        self._undecided: dict[str, int] = {}

    async def remembered(self, session: int, user: str, device: str, platform: str) -> int:
        """The device's number, once the fold has it as one of the user's. Raises Refused."""
        logging_in = self._logging_in.setdefault(user, {})
        if self._sessions.of(user, device) is None:
            others = {name for name in logging_in.values() if self._sessions.of(user, name) is None} - {
                device
            }
            if len(self._sessions.devices(user)) + len(others) >= self._settings.max_devices_online:
                if not logging_in:
                    del self._logging_in[user]
                self._counters.hit("max_devices_online")
                raise refused(
                    "limit_exceeded", f"{self._settings.max_devices_online} devices are online already"
                )
        logging_in[session] = device
        self._logging_in_of[session] = user
        try:
            row = self._store.user(user)
            if row is None or device not in row.devices or user in self._undecided:
                await self._remember(user, device, platform)
                row = self._store.user(user)
            if session not in logging_in:
                raise refused("unavailable", "the connection is gone")
            if row is None or device not in row.devices:
                raise refused("unavailable", "the device was forgotten meanwhile")
            return row.devices[device].number
        finally:
            self.forget(session)

    async def _remember(self, user: str, device: str, platform: str) -> None:
        """Have the fold decide that the device is one of the user's. Raises Refused."""
        id, earlier = self._snowflake.next(), self._undecided.get(user)
        self._undecided[user] = id
        try:
            in_use = self._in_use(user)
            if (row := self._store.user(user)) is not None:
                if device not in row.devices and len(row.devices) >= self._settings.max_devices:
                    self._counters.hit("max_devices")  # one will be forgotten
                await self._flush_user(user, {*row.devices, device})
                in_use |= self._in_use(user)
            in_use.discard(device)
            now, limit = self._now_ms(), self._settings.max_devices
            record = records.Login(id, now, user, device, platform, limit, sorted(in_use))
            raise_rejected(await self._submit(record, 100 * len(in_use)))
        except Refused as refusal:
            if refusal.error.code != "unavailable":  # that one may yet be in the log
                self._decided(user, id, earlier)
            raise
        self._decided(user, id)

    def _decided(self, user: str, id: int, earlier: int | None = None) -> None:
        if self._undecided.get(user) != id:
            return
        if earlier is None:
            del self._undecided[user]
        else:
            self._undecided[user] = earlier

    def _in_use(self, user: str) -> set[str]:
        """The user's devices that are online or logging in."""
        return {*self._sessions.devices(user), *self._logging_in.get(user, {}).values()}

    def forget(self, session: int) -> None:
        """The connection is logging in no more: it has, or was refused, or is gone. Idempotent."""
        user = self._logging_in_of.pop(session, "")
        logging_in = self._logging_in.get(user)
        if logging_in is not None:
            logging_in.pop(session, None)
            if not logging_in:
                del self._logging_in[user]
