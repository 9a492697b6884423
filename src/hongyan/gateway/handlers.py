"""What each request does: one function a type. A coroutine that is returned answers later, in its turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from hongyan.errors import Refused, WireError
from hongyan.gateway import frames
from hongyan.gateway.fanout import presence_data
from hongyan.link.base import Item
from hongyan.protocol.requests import (
    Conversations,
    CreateGroup,
    Heartbeat,
    History,
    Invite,
    JoinGroup,
    LeaveGroup,
    Login,
    Presence,
    SyncOffline,
)

if TYPE_CHECKING:
    from hongyan.gateway.connection import Connection

Later = Coroutine[Any, Any, bytes | None]  # the payload of the answer, None where it has been written
Handler = Callable[["Connection", Any], Later | None]

LOGIN_WAIT_S = 3.0  # for a turn, at most: a client gives a login some ten seconds
_CLOSES = {"bad_token", "token_expired", "limit_exceeded", "rate_limited"}


def _answer(connection: Connection, kind: str, ref: str | None, data: dict[str, Any]) -> bytes:
    return connection.envelope(kind, data if ref is None else {"ref": ref, **data})


def _item(connection: Connection, item: Item) -> Any:
    return connection.codec.item(item.conversation, item.message, item.own)


def heartbeat(connection: Connection, request: Heartbeat) -> None:
    connection.push(_answer(connection, "heartbeat", request.message_id, {}))


async def presence(connection: Connection, request: Presence) -> bytes:
    data = request.data
    states = await connection.gateway.engine.presence(connection.session, data.users, data.subscribe)
    return _answer(connection, "presence", request.message_id, {"states": presence_data(states)})


def login(connection: Connection, request: Login) -> Later | None:
    """Wait for a turn, or send away whom that would take too long: after a restart everybody comes at once."""
    gateway = connection.gateway
    if gateway.logins.wait_s > LOGIN_WAIT_S:
        wait = gateway.logins.later() + random.random()
        connection.login_later(wait)
        text = "too many logins at a time"
        gateway.counters.logins_postponed += 1
        _refuse_login(
            connection, WireError("busy", text, retry_after_ms=int(wait * 1000)), request.message_id
        )
        return None
    return _log_in(connection, request)


async def _log_in(connection: Connection, request: Login) -> bytes | None:
    """Verify, then let the engine decide."""
    gateway, settings = connection.gateway, connection.gateway.settings
    await gateway.logins.turn()
    if not _verify(connection, request):
        return None
    began, turns = gateway.monotonic(), gateway.logins.turns
    try:
        session_id, groups = await gateway.engine.login(
            connection.session, connection.user, request.data.device_id, request.data.platform
        )
    except Refused as refusal:
        connection.login_refused()
        _refuse_login(connection, refusal.error, request.message_id)
        return None
    except BaseException:  # the engine may have it, and the connection may have gone meanwhile
        gateway.engine.logout(connection.session)
        raise
    if connection.closed:  # it went while the engine was at it: nobody else will say so
        gateway.engine.logout(connection.session)
        return None
    answer = {
        "user_id": connection.user,
        "device_id": request.data.device_id,
        "session_id": session_id,
        "heartbeat_interval_ms": settings.heartbeat_interval_ms,
        "max_frame_bytes": settings.max_frame_bytes,
        "features": [],
    }
    connection.login_accepted(groups, _answer(connection, "login", request.message_id, answer))
    if gateway.logins.turns == turns:  # a known device's, straight through: all of it was this login's work
        gateway.logins.charge_too(gateway.monotonic() - began)
    return None


def _verify(connection: Connection, request: Login) -> bool:
    """Whether the connection is there and its token good; from there on the login is under way. The throttle is asked
    only about tokens that are not."""
    gateway = connection.gateway
    if connection.closed:  # not charged: what costs nothing says nothing about the others
        return False
    began = gateway.monotonic()
    try:
        claims = gateway.verifier.verify(request.data.token)
    except Refused as refusal:
        error = refusal.error
        if error.code == "bad_token":
            wait = gateway.failed_logins.fail(connection.address, gateway.monotonic())
            if wait:
                gateway.counters.logins_throttled += 1
                text = "too many failed logins from this address"
                error = WireError("rate_limited", text, retry_after_ms=int(wait * 1000) + 1)
        _refuse_login(connection, error, request.message_id)
        return False
    finally:
        gateway.logins.charge(gateway.monotonic() - began)
    connection.begin_login(claims.user, request.data.device_id, claims.expires_at_ms)
    return True


def _refuse_login(connection: Connection, error: WireError, ref: str | None) -> None:
    connection.gateway.counters.logins_failed += 1
    connection.write_error(error, ref)
    if error.code in _CLOSES:
        connection.close(frames.BAD_LOGIN, error.code)


async def create_group(connection: Connection, request: CreateGroup) -> None:
    data, engine = request.data, connection.gateway.engine
    entered = engine.create_group(connection.session, data.group, data.name, data.join)
    await _enter(connection, "create_group", data.group or "", request.message_id, entered)


async def join_group(connection: Connection, request: JoinGroup) -> None:
    group = request.data.group
    entered = connection.gateway.engine.join_group(connection.session, group)
    await _enter(connection, "join_group", group, request.message_id, entered)


async def _enter(
    connection: Connection,
    kind: str,
    group: str,
    ref: str | None,
    entered: Coroutine[Any, Any, dict[str, Any]],
) -> None:
    """Answer, and only then push what the group says from here on: its first messages may be of the same batch.
    The fan-out holds them back (`entering`) between telling that the user has joined `group` and the answer here."""
    connection.entering = group
    answer = None
    try:
        answer = _answer(connection, kind, ref, await entered)
    finally:
        connection.entering = None
        if not connection.closed and not connection.outbox.release(answer):
            connection.too_slow()


async def leave_group(connection: Connection, request: LeaveGroup) -> bytes:
    answer = await connection.gateway.engine.leave_group(connection.session, request.data.group)
    return _answer(connection, "leave_group", request.message_id, answer)


async def invite(connection: Connection, request: Invite) -> bytes:
    data, engine = request.data, connection.gateway.engine
    answer = await engine.invite(connection.session, data.group, data.users)
    return _answer(connection, "invite", request.message_id, answer)


async def sync_offline(connection: Connection, request: SyncOffline) -> bytes:
    data = request.data
    page = await connection.gateway.engine.sync(connection.session, data.limit, data.cursors, data.page)
    answer = {
        "messages": [_item(connection, item) for item in page.items],
        "has_more": page.has_more,
        "page": page.page,
    }
    return _answer(connection, "sync_offline", request.message_id, answer)


async def history(connection: Connection, request: History) -> bytes:
    data = request.data
    page = await connection.gateway.engine.history(
        connection.session, data.conversation, data.before, data.after, data.limit
    )
    answer = {
        "conversation": data.conversation,
        "messages": [_item(connection, item) for item in page.items],
        "has_more": page.has_more,
    }
    return _answer(connection, "history", request.message_id, answer)


async def conversations(connection: Connection, request: Conversations) -> bytes:
    data = request.data
    page = await connection.gateway.engine.conversations(connection.session, data.limit, data.page)
    rows = [
        {
            "conversation": row.conversation,
            "last_seq": row.last_seq,
            "first_seq": row.first_seq,
            "acked_seq": row.acked_seq,
            "read_seq": 0,  # until `features` names `read`
            "last_message": None if row.last_message is None else _item(connection, row.last_message),
        }
        for row in page.items
    ]
    answer = {"conversations": rows, "has_more": page.has_more, "page": page.page}
    return _answer(connection, "conversations", request.message_id, answer)


HANDLERS: dict[type[Any], Handler] = {
    Login: login,
    Heartbeat: heartbeat,
    Presence: presence,
    CreateGroup: create_group,
    JoinGroup: join_group,
    LeaveGroup: leave_group,
    Invite: invite,
    SyncOffline: sync_offline,
    History: history,
    Conversations: conversations,
}
READS = frozenset({SyncOffline, History, Conversations})
