"""What a device reads: `sync_offline`, `history`, `conversations`. From the store's merged view.

Long walks hand the loop back every `SLICE` rows, so a user with many conversations does not hold up
live traffic.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Mapping

from hongyan.engine.sessions import Owner, Session, SyncState
from hongyan.errors import Refused, Retry, WireError, refused
from hongyan.link.base import ConversationItem, ConversationsPage, HistoryPage, Item, SyncPage
from hongyan.protocol.names import address_for, conversation_key
from hongyan.protocol.state import Conversation, Membership, Message
from hongyan.store.base import Store

SLICE = 200  # rows walked between two looks at other work
PAGE_BYTES = 256 * 1024  # items of one reply (protocol.md, "Cursors and sync")
# A sync remembers where this many conversations with news began, then walks on from there: a bound on
# what one connection can make the server hold (two strings and an int each).
MAX_STARTS = 20_000

_STALE = WireError(
    "invalid_field", "this page is not of a sync under way on this connection", "data.page",
    retry_override=Retry.AFTER_SYNC,
)  # fmt: skip


def item_bytes(message: Message) -> int:
    """An upper bound of one item's size on the wire in either codec.

    MessagePack spells a number of three JSON characters in nine bytes (a factor of 9/4 with its comma);
    in JSON a character of `key` may take twelve (`\\ud83d\\ude00`).
    """
    content = len(message.content)
    if message.content[:1] in b"[{":
        content = content * 9 // 4
    return content + 12 * len(message.key) + len(message.conversation) + 320


class Reader:
    """Read side of the engine. Every call checks membership anew."""

    def __init__(self, store: Store, acked: Callable[[Owner, str], int]) -> None:
        """`acked`: what a device acknowledged and the store may not have yet; 0: nothing."""
        self._store = store
        self._acked = acked

    def cursor(self, session: Session, key: str, row: Membership) -> int:
        """The highest seq that this device has acknowledged, `first_seq` - 1 at least."""
        of = self._store.conversation(key)
        pending = min(self._acked(session.owner, key), of.last_seq) if of is not None else 0
        return max(row.cursor(session.device_number), pending, row.first_seq - 1)

    async def _rows(
        self, user: str, after: str = ""
    ) -> AsyncIterator[tuple[str, Membership, Conversation | None]]:
        """The conversations that a user is a member of, ascending from key > `after`."""
        while rows := self._store.memberships(user, after, SLICE):
            for key, row in rows:
                if row.position:
                    yield key, row, self._store.conversation(key)
            after = rows[-1][0]
            await asyncio.sleep(0)

    async def sync(
        self, session: Session, limit: int, cursors: Mapping[str, int], page: str | None
    ) -> SyncPage:
        if page is None:
            sync = session.sync = await self._begin_sync(session, cursors, "")
            index, after, high = 0, -1, -1
        else:
            sync, index, after, high = _sync_position(session, page)
        items: list[Item] = []
        size = 0
        user = session.user
        while index < len(sync.starts) and len(items) < limit:
            key, start = sync.starts[index]
            row = self._store.membership(user, key)
            of = self._store.conversation(key)
            if row is None or not row.position or of is None:  # left meanwhile
                index, after, high = index + 1, -1, -1
                continue
            if high < 0:
                after, high = start, of.last_seq
            low = max(after + 1, row.first_seq)
            fresh = self._store.messages(key, low, high, limit - len(items)) if low <= high else []
            address = address_for(user, key)
            for message in fresh:
                size += item_bytes(message)
                if size > PAGE_BYTES and items:
                    return SyncPage(items, True, f"{sync.name}.{index}.{after}.{high}")
                items.append(Item(address, message, message.sender == user))
                after = message.seq
            if not fresh or after >= high:
                index, after, high = index + 1, -1, -1
                if index % SLICE == 0:
                    await asyncio.sleep(0)
        if index >= len(sync.starts):
            session.sync = None
            if sync.rest is None:
                return SyncPage(items, False, None)
            session.sync = sync = await self._begin_sync(session, sync.cursors, sync.rest)
            if not sync.starts:
                return SyncPage(items, False, None)
            index, after, high = 0, -1, -1
        return SyncPage(items, True, f"{sync.name}.{index}.{after}.{high}")

    async def _begin_sync(self, session: Session, cursors: Mapping[str, int], after: str) -> SyncState:
        """Note where each conversation with news starts, from key > `after`."""
        named = {conversation_key(session.user, address): seq for address, seq in cursors.items()}
        session.syncs += 1
        starts: list[tuple[str, int]] = []
        rest = None
        async for key, row, of in self._rows(session.user, after):
            start = named[key] if key in named else self.cursor(session, key, row)
            start = max(start, row.first_seq - 1)
            if of is not None and of.last_seq > start:
                starts.append((key, start))
                if len(starts) >= MAX_STARTS:
                    rest = key
                    break
        return SyncState(session.syncs, starts, cursors, rest)

    async def history(
        self, session: Session, address: str, before: int | None, after: int | None, limit: int
    ) -> HistoryPage:
        user = session.user
        key = conversation_key(user, address)
        of = self._store.conversation(key)
        row = self._store.membership(user, key)
        if address[0] == "#":
            if of is None:
                raise refused("unknown_group", "no such group", "data.conversation")
            if row is None or not row.position:
                raise refused("not_member", "you are not a member of this group", "data.conversation")
        elif of is None or row is None:
            if self._store.user(address[1:]) is None:
                raise refused("unknown_user", "no such user", "data.conversation")
            return HistoryPage((), False)
        low = max(row.first_seq, after + 1 if after is not None else 0)
        high = min(of.last_seq, before - 1 if before is not None else of.last_seq)
        if low > high:
            return HistoryPage((), False)
        newest = after is None
        messages: list[Message] = []
        size = 0
        for message in self._walk(key, low, high, limit, newest):
            size += item_bytes(message)
            if size > PAGE_BYTES and messages:
                break
            messages.append(message)
        more = bool(messages) and (messages[-1].seq > low if newest else messages[-1].seq < high)
        if newest:
            messages.reverse()
        return HistoryPage([Item(address, message, message.sender == user) for message in messages], more)

    def _walk(self, key: str, low: int, high: int, limit: int, newest: bool) -> list[Message]:
        """Up to `limit` messages from one end of [low, high] (descending with `newest`)."""
        found = self._store.messages(key, low, high, limit, newest)
        return found[::-1] if newest else found

    async def conversations(self, session: Session, limit: int, page: str | None) -> ConversationsPage:
        """Newest first; a page's token is a place in that order, so it holds on any connection."""
        place = _conversations_place(page) if page is not None else None
        order: list[tuple[int, str]] = []
        async for key, row, of in self._rows(session.user):
            at = of.last_at if of is not None and of.last_seq >= row.first_seq else row.joined_at
            if place is None or (at, key) < place:
                order.append((at, key))
        order.sort(reverse=True)
        items: list[ConversationItem] = []
        size = 0
        for at, key in order[:limit]:
            item = self._conversation_item(session, key)
            if item is None:
                continue
            size += 600 + (item_bytes(item.last_message.message) if item.last_message is not None else 0)
            if size > PAGE_BYTES and items:
                break
            items.append(item)
            place_after = (at, key)
        else:
            if len(order) <= limit:
                return ConversationsPage(items, False, None)
            place_after = order[limit - 1]
        token = base64.urlsafe_b64encode(f"{place_after[0]}.{place_after[1]}".encode()).decode()
        return ConversationsPage(items, True, token)

    def _conversation_item(self, session: Session, key: str) -> ConversationItem | None:
        user = session.user
        row, of = self._store.membership(user, key), self._store.conversation(key)
        if row is None or not row.position or of is None:
            return None
        address = address_for(user, key)
        newest = (
            self._store.messages(key, of.last_seq, of.last_seq, 1) if of.last_seq >= row.first_seq else []
        )
        last = Item(address, newest[0], newest[0].sender == user) if newest else None
        return ConversationItem(address, of.last_seq, row.first_seq, self.cursor(session, key, row), last)


def _sync_position(session: Session, page: str) -> tuple[SyncState, int, int, int]:
    sync = session.sync
    try:
        name, index, after, high = (int(part) for part in page.split("."))
    except ValueError:
        raise Refused(_STALE) from None
    if sync is None or name != sync.name or not 0 <= index < len(sync.starts):
        raise Refused(_STALE)
    start = sync.starts[index][1]
    if not (after == high == -1 or start <= after <= high < 2**63):  # -1: this conversation is not begun
        raise Refused(_STALE)
    return sync, index, after, high


def _conversations_place(page: str) -> tuple[int, str]:
    try:
        at, _, key = base64.urlsafe_b64decode(page.encode()).decode().partition(".")
        return int(at), key
    except (ValueError, binascii.Error):
        raise refused("invalid_field", "not a page of conversations", "data.page") from None
