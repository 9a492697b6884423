"""Groups in the fold: who is a member is decided at the record's place in the order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from hongyan.protocol import records
from hongyan.protocol.names import is_group_address
from hongyan.protocol.outcomes import GroupChanged, Outcome, Rejected
from hongyan.protocol.state import Conversation, Membership, User

if TYPE_CHECKING:
    from hongyan.engine.sequencer import Overlay

Event = tuple[str, str]


def fold(
    state: Overlay, record: records.CreateGroup | records.Join | records.Leave | records.Invite
) -> Outcome:
    if not is_group_address(record.group):
        return Rejected("invalid_field", "not a group address", "data.group")
    if isinstance(record, records.CreateGroup):
        return _create(state, record)
    group = state.conversation(record.group)
    if group is None:
        return Rejected("unknown_group", "no such group", "data.group")
    if isinstance(record, records.Join):
        return _join(state, record, group)
    if isinstance(record, records.Leave):
        return _leave(state, record, group)
    return _invite(state, record, group)


def _answer(
    name: str,
    group: Conversation,
    row: Membership | None,
    events: tuple[Event, ...] = (),
) -> GroupChanged:
    first_seq = row.first_seq if row is not None and row.position else 0
    return GroupChanged(
        name, group.name, group.join, group.owner, group.members, group.last_seq, first_seq, events
    )


def _enter(state: Overlay, name: str, group: Conversation, user_id: str, user: User, at: int) -> GroupChanged:
    """Make `user` the newest member; the first of an empty group becomes its owner."""
    position = group.next_position
    row = Membership(group.last_seq + 1, at, position)
    events: tuple[Event, ...] = (("joined", user_id),)
    if not group.owner:
        events += (("owner", user_id),)
    group = msgspec.structs.replace(
        group, owner=group.owner or user_id, members=group.members + 1, next_position=position + 1
    )
    changes = state.changes
    changes.conversations[name] = group
    changes.memberships[user_id, name] = row
    changes.members[name, position] = user_id
    changes.users[user_id] = msgspec.structs.replace(user, groups=user.groups + 1)
    return _answer(name, group, row, events)


def _create(state: Overlay, record: records.CreateGroup) -> Outcome:
    group = state.conversation(record.group)
    if group is not None:
        if group.owner != record.user:
            return Rejected("already_exists", "this group name is taken", "data.group")
        return _answer(record.group, group, state.membership(record.user, record.group))
    user = state.user(record.user)
    if user is None:
        return Rejected("unknown_user", "no such user")
    if user.groups >= record.max_groups:
        return Rejected("limit_exceeded", f"a user can be in {record.max_groups} groups at most")
    group = Conversation(0, record.at, record.name, record.join, record.user, record.user)
    return _enter(state, record.group, group, record.user, user, record.at)


def _join(state: Overlay, record: records.Join, group: Conversation) -> Outcome:
    row = state.membership(record.user, record.group)
    if row is not None and row.position:
        return _answer(record.group, group, row)
    if group.join != "open" and row is None:
        return Rejected("forbidden", "this group asks for an invitation", "data.group")
    user = state.user(record.user)
    if user is None:
        return Rejected("unknown_user", "no such user")
    if group.members >= record.max_members:
        return Rejected("group_full", f"the group has {group.members} members, its limit", "data.group")
    if user.groups >= record.max_groups:
        return Rejected("limit_exceeded", f"a user can be in {record.max_groups} groups at most")
    return _enter(state, record.group, group, record.user, user, record.at)


def _leave(state: Overlay, record: records.Leave, group: Conversation) -> Outcome:
    row = state.membership(record.user, record.group)
    if row is None:
        return _answer(record.group, group, None)
    changes = state.changes
    changes.memberships[record.user, record.group] = None  # an invitation ends with leaving, too
    if not row.position:
        return _answer(record.group, group, None)
    changes.members[record.group, row.position] = None
    user = state.user(record.user)
    if user is not None:
        changes.users[record.user] = msgspec.structs.replace(user, groups=max(0, user.groups - 1))
    events: tuple[Event, ...] = (("left", record.user),)
    owner = group.owner
    if owner == record.user:
        owner = state.first_member(record.group) or ""
        if owner:
            events += (("owner", owner),)
    group = msgspec.structs.replace(group, owner=owner, members=group.members - 1)
    changes.conversations[record.group] = group
    return _answer(record.group, group, None, events)


def _invite(state: Overlay, record: records.Invite, group: Conversation) -> Outcome:
    inviter = state.membership(record.user, record.group)
    if inviter is None or not inviter.position:
        return Rejected("not_member", "only members can invite", "data.group")
    for user in record.users:
        if state.user(user) is None:
            return Rejected("unknown_user", f"no such user: @{user}", "data.users")
    events: list[Event] = []
    for user in dict.fromkeys(record.users):
        if state.membership(user, record.group) is None:
            state.changes.memberships[user, record.group] = Membership(0, record.at, 0)
            events.append(("invited", user))
    return _answer(record.group, group, inviter, tuple(events))
