"""What a device reads: `sync_offline`, `history`, `conversations`. From the store's merged view.

Walks and pages hand the loop back once `TURN_MS` have passed, so a user with many conversations does not
hold up live traffic, and all reads together have a share of each turn, so that many users do not either. Whoever
leaves a group meanwhile gets nothing more of it: what was collected before is looked at once more.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from hongyan.engine.sessions import Owner, Session, SyncState
from hongyan.errors import Refused, Retry, WireError, refused
from hongyan.link.base import ConversationItem, ConversationsPage, HistoryPage, Item, SyncPage
from hongyan.protocol.names import address_for, conversation_key
from hongyan.protocol.state import Conversation, Membership, Message
from hongyan.share import Share
from hongyan.store.base import Store

SLICE = 100  # rows of a walk that are read in one go
TURN_MS = 2  # of the loop's time, then others have theirs; a slice or a conversation's messages come on top
# Reads under way at a time; the others wait, in order. They wait for nothing but the loop, so more would not be
# faster; with fewer, a few long reads would stand before every short one.
READERS = 8
PART = 0.25  # of each turn of the loop is all reads' together, `TURN_MS` of it at least
PAGE_BYTES = 256 * 1024  # items of one reply (protocol.md, "Cursors and sync")
# A sync remembers where this many conversations with news began, then walks on from there: a bound on
# what one connection can make the server hold (two strings and an int each).
MAX_STARTS = 20_000

_STALE = WireError(
    "invalid_field", "this page is not of a sync under way on this connection", "data.page",
    retry_override=Retry.AFTER_SYNC,
)  # fmt: skip


ITEM_BYTES = 180  # of an item's names, numbers and marks


def item_bytes(message: Message) -> int:
    """An upper bound of one item's size on the wire in either codec.

    MessagePack spells a number of three JSON characters in nine bytes (a factor of 9/4 with its comma);
    in JSON a character of `key` may take twelve (`\\ud83d\\ude00`), where it is not plain text.
    """
    content = len(message.content)
    if message.content[:1] in b"[{":
        content = content * 9 // 4
    key = message.key
    plain = key.isascii() and key.isprintable()  # a quotation mark takes two
    names = len(message.conversation) + len(message.sender) + len(message.content_type)
    return content + names + (2 if plain else 12) * len(key) + ITEM_BYTES


class Turn:
    """A read's turn on the loop. `await turn.end()` where `turn.over` says so."""

    __slots__ = ("_began", "_now_ms", "_share", "ended")

    def __init__(self, share: Share, now_ms: Callable[[], int]) -> None:
        self._share = share
        self._now_ms = now_ms
        self._began = now_ms()
        self.ended = False  # at least once: anything may have happened in between

    @property
    def over(self) -> bool:
        return self._now_ms() - self._began >= TURN_MS

    def charge(self) -> None:
        self._share.charge((self._now_ms() - self._began) / 1000)

    async def end(self) -> None:
        self.ended = True
        self.charge()
        await self._share.turn()
        self._began = self._now_ms()


class Reader:
    """Read side of the engine. Every call checks membership anew; the caller holds a `place`, and passes its turn."""

    def __init__(
        self, store: Store, acked: Callable[[Owner, str], int], monotonic_ms: Callable[[], int]
    ) -> None:
        """`acked`: what a device acknowledged and the store may not have yet; 0: nothing."""
        self._store = store
        self._acked = acked
        self._monotonic_ms = monotonic_ms
        self._places = asyncio.Semaphore(READERS)
        piece_s = TURN_MS / 1000
        self._share = Share(lambda: monotonic_ms() / 1000, floor_s=piece_s, part=PART, piece_s=piece_s / 4)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Turn]:
        """Wait for one of the `READERS` places and for a turn, first come, first served."""
        async with self._places:
            await self._share.turn()
            turn = Turn(self._share, self._monotonic_ms)
            try:
                yield turn
            finally:
                turn.charge()

    def cursor(self, session: Session, key: str, row: Membership) -> int:
        """The highest seq that this device has acknowledged, `first_seq` - 1 at least."""
        of = self._store.conversation(key)
        pending = min(self._acked(session.owner, key), of.last_seq) if of is not None else 0
        return max(row.cursor(session.device_number), pending, row.first_seq - 1)

    async def _rows(
        self, user: str, turn: Turn, after: str = ""
    ) -> AsyncIterator[tuple[str, Membership, Conversation | None]]:
        """The conversations that a user is a member of, ascending from key > `after`."""
        while rows := self._store.memberships(user, after, SLICE):
            for key, row in rows:
                if row.position:
                    yield key, row, self._store.conversation(key)
            after = rows[-1][0]
            if turn.over:
                await turn.end()

    def _sees(self, user: str, address: str, seq: int) -> bool:
        """Whether what was read before the loop turned is still the user's to see."""
        if address[0] != "#":
            return True
        row = self._store.membership(user, address)
        return row is not None and row.position > 0 and row.first_seq <= seq

    async def sync(
        self, turn: Turn, session: Session, limit: int, cursors: Mapping[str, int], page: str | None
    ) -> SyncPage:
        if page is None:
            sync = session.sync = await self._begin_sync(session, turn, cursors, "")
            index, after, high = 0, -1, -1
        else:
            sync, index, after, high = _sync_position(session, page)
        items, index, after, high = await self._sync_items(
            session.user, turn, sync, index, after, high, limit
        )
        if index >= len(sync.starts):
            session.sync = None
            if sync.rest is not None:
                session.sync = sync = await self._begin_sync(session, turn, sync.cursors, sync.rest)
                index, after, high = 0, -1, -1
        if turn.ended:
            items = [item for item in items if self._sees(session.user, item.conversation, item.message.seq)]
        if index >= len(sync.starts):
            session.sync = None
            return SyncPage(items, False, None)
        return SyncPage(items, True, f"{sync.name}.{index}.{after}.{high}")

    async def _sync_items(
        self, user: str, turn: Turn, sync: SyncState, index: int, after: int, high: int, limit: int
    ) -> tuple[list[Item], int, int, int]:
        """A page's items from a place on, and the place to go on from."""
        items: list[Item] = []
        size = 0
        while index < len(sync.starts) and len(items) < limit:
            if turn.over:
                await turn.end()
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
                    return items, index, after, high
                items.append(Item(address, message, message.sender == user))
                after = message.seq
            if not fresh or after >= high:
                index, after, high = index + 1, -1, -1
        return items, index, after, high

    async def _begin_sync(
        self, session: Session, turn: Turn, cursors: Mapping[str, int], after: str
    ) -> SyncState:
        """Note where each conversation with news starts, from key > `after`."""
        named = {conversation_key(session.user, address): seq for address, seq in cursors.items()}
        session.syncs += 1
        starts: list[tuple[str, int]] = []
        rest = None
        async for key, row, of in self._rows(session.user, turn, after):
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
        found = self._store.messages(key, low, high, limit, newest)
        count = size = 0
        for message in reversed(found) if newest else found:
            size += item_bytes(message)
            if size > PAGE_BYTES and count:
                break
            count += 1
        messages = found[len(found) - count :] if newest else found[:count]
        more = bool(messages) and (messages[0].seq > low if newest else messages[-1].seq < high)
        return HistoryPage([Item(address, message, message.sender == user) for message in messages], more)

    async def conversations(
        self, turn: Turn, session: Session, limit: int, page: str | None
    ) -> ConversationsPage:
        """Newest first; a page's token is a place in that order, so it holds on any connection."""
        place = _conversations_place(page) if page is not None else None
        newest: list[tuple[int, str]] = []  # a heap: the oldest of them is the first to go
        async for key, row, of in self._rows(session.user, turn):
            at = of.last_at if of is not None and of.last_seq >= row.first_seq else row.joined_at
            if place is not None and (at, key) >= place:
                continue
            if len(newest) <= limit:  # one more than asked for says that there are more
                heapq.heappush(newest, (at, key))
            else:
                heapq.heappushpop(newest, (at, key))
        newest.sort(reverse=True)
        more = len(newest) > limit
        items: list[ConversationItem] = []
        size = 0
        last = (0, "")  # the place that the next page goes on after
        for at, key in newest[:limit]:
            if turn.over:
                await turn.end()
            item = self._conversation_item(session, key)
            if item is not None:
                size += 600 + (item_bytes(item.last_message.message) if item.last_message is not None else 0)
                if size > PAGE_BYTES and items:
                    more = True
                    break
                items.append(item)
            last = (at, key)
        if turn.ended:
            items = [item for item in items if self._sees(session.user, item.conversation, item.first_seq)]
        return ConversationsPage(items, more, _conversations_token(*last) if more else None)

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


def _conversations_token(at: int, key: str) -> str:
    return base64.urlsafe_b64encode(f"{at}.{key}".encode()).decode()


def _conversations_place(page: str) -> tuple[int, str]:
    try:
        at, _, key = base64.urlsafe_b64decode(page.encode()).decode().partition(".")
        return int(at), key
    except (ValueError, binascii.Error):
        raise refused("invalid_field", "not a page of conversations", "data.page") from None
