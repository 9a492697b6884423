"""What a user asks of groups: create, join, leave, invite. Counted and admitted here, decided by the fold."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from hongyan.config import Settings
from hongyan.engine.committer import Submit
from hongyan.errors import Refused, WireError, refused
from hongyan.ids import Snowflake
from hongyan.metrics import Counters
from hongyan.protocol import records
from hongyan.protocol.outcomes import GroupChanged, Outcome, Rejected
from hongyan.store.base import Store
from hongyan.throttle import Throttle

_LIMITS = {"group_full": "max_group_members", "limit_exceeded": "max_groups"}  # by the code of a refusal


def raise_rejected(outcome: Outcome) -> None:
    if isinstance(outcome, Rejected):
        raise Refused(WireError(outcome.code, outcome.text, outcome.field))


class GroupCommands:
    """Each returns the answer's data. Raises Refused."""

    def __init__(
        self, settings: Settings, store: Store, submit: Submit, snowflake: Snowflake, counters: Counters,
        now_ms: Callable[[], int], monotonic_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._store = store
        self._submit = submit
        self._snowflake = snowflake
        self._counters = counters
        self._now_ms = now_ms

        def seconds() -> float:
            return monotonic_ms() / 1000

        self._membership_changes = Throttle(settings.membership_changes_per_minute, monotonic=seconds)
        self._group_creations = Throttle(settings.group_creations_per_hour, 3600, monotonic=seconds)

    async def create(self, user: str, group: str | None, name: str, join: str) -> dict[str, Any]:
        now = self._now_ms()
        of = self._store.conversation(group) if group is not None else None
        if of is not None and of.owner != user:
            raise refused("already_exists", "this group name is taken", "data.group")
        if of is None:  # the owner's own, once more, is answered as it was and counts for nothing
            self._count("group_creations_per_hour", self._group_creations, user, "groups created")
        id = self._snowflake.next()
        done = await self._change(
            records.CreateGroup(id, now, user, group or f"#g{id}", name, join, self._settings.max_groups)
        )
        return {
            "group": done.group, "name": done.name, "join": done.join, "owner": done.owner,
            "members": done.members, "seq": self._seq(done), "first_seq": done.first_seq,
        }  # fmt: skip

    async def join(self, user: str, group: str) -> dict[str, Any]:
        now = self._now_ms()
        self._count_membership_change(user, group)
        limits = self._settings
        record = records.Join(
            self._snowflake.next(), now, user, group, limits.max_group_members, limits.max_groups
        )
        done = await self._change(record)
        return {"group": group, "seq": self._seq(done), "first_seq": done.first_seq, "members": done.members}

    async def leave(self, user: str, group: str) -> dict[str, Any]:
        now = self._now_ms()
        self._count_membership_change(user, group)
        await self._change(records.Leave(self._snowflake.next(), now, user, group))
        return {"group": group}

    async def invite(self, user: str, group: str, users: Sequence[str]) -> dict[str, Any]:
        ids = [address[1:] for address in users]
        await self._change(records.Invite(self._snowflake.next(), self._now_ms(), user, group, ids))
        return {"group": group}

    def _seq(self, done: GroupChanged) -> int:
        """The group's newest `seq`. Who was a member already has been pushed what came behind the request in its
        batch: the answer must not say less."""
        of = None if done.events else self._store.conversation(done.group)
        return of.last_seq if of is not None else done.seq

    def _count_membership_change(self, user: str, group: str) -> None:
        key = (user, group)
        self._count("membership_changes_per_minute", self._membership_changes, key, "joins and leaves")

    def _count(self, limit: str, throttle: Throttle, key: Hashable, what: str) -> None:
        """Raise Refused `rate_limited` past the limit; a refusal does not count."""
        wait = throttle.take(key)
        if wait:
            self._counters.hit(limit)
            raise refused("rate_limited", f"too many {what}", retry_after_ms=int(wait * 1000) + 1)

    async def _change(self, record: records.Record) -> GroupChanged:
        outcome = await self._submit(record)
        if isinstance(outcome, Rejected) and outcome.code in _LIMITS:
            self._counters.hit(_LIMITS[outcome.code])
        raise_rejected(outcome)
        assert isinstance(outcome, GroupChanged)
        return outcome
