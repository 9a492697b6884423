"""What the view on RocksDB reads: rows on disk under the tail's, with the newest state of each kind in a cache.

Reads are synchronous: `get` holds the GIL too (two threads take twice as long as one), for 1.6 µs from its
cache and 0.5 µs where the bloom filters know of no such key, so a thread would cost more than it frees
(`scripts/benchmark/store.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from heapq import merge
from itertools import groupby, islice, takewhile
from operator import itemgetter
from typing import Any

import structlog
from rocksdict import Rdict, RdictIter, ReadOptions

from hongyan.errors import DataDirectoryError
from hongyan.protocol.state import Conversation, Membership, Message, Sent, User, opened
from hongyan.store import keys
from hongyan.store.cache import Cache
from hongyan.store.rows import (
    FIRST,
    decode_conversation,
    decode_ids,
    decode_membership,
    decode_run,
    decode_sent,
    decode_user,
)
from hongyan.store.tail import MISSING, Tail

log = structlog.get_logger("hongyan.store")

READ_BYTES = 512 * 1024
CACHED_FIRSTS = 2_000  # conversations that resends were looked up in: up to 8 KB each, and twice as many
_DAMAGED = "Corruption:"
_MAX_SEQ = 2**63


class _First:
    """The first messages of one conversation: how many are known, and by the hash of (sender, key) which they may
    be, newest first."""

    __slots__ = ("count", "seqs")

    def __init__(self) -> None:
        self.count = 0
        self.seqs: dict[int, tuple[int, ...]] = {}

    def add(self, run: list[Message]) -> None:
        for message in run:
            mark = hash((message.sender, message.key))
            self.seqs[mark] = (message.seq, *self.seqs.get(mark, ()))
        self.count += len(run)


class RocksReads:
    """The reading part of `hongyan.store.base.Store`."""

    def __init__(self, db: Rdict, cache_conversations: int, fatal: Callable[[BaseException], None]) -> None:
        self._db: Rdict | None = db
        self._fatal = fatal
        self._tail = Tail()
        self._conversations: Cache[str, Conversation] = Cache(cache_conversations)
        self._memberships: Cache[tuple[str, str], Membership] = Cache(2 * cache_conversations)
        self._users: Cache[str, User] = Cache(cache_conversations)
        self._firsts: Cache[str, _First] = Cache(min(cache_conversations, CACHED_FIRSTS))

    def _get(self, key: bytes) -> bytes | None:
        assert self._db is not None
        try:
            found: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._unreadable(error) from None
        return found

    def _get_many(self, wanted: list[bytes]) -> list[bytes | None]:
        """At half of what as many calls of `_get` cost, once the tables on disk are many."""
        assert self._db is not None
        try:
            found: list[bytes | None] = self._db.get(wanted)  # type: ignore[arg-type, assignment]
        except Exception:  # one of them cannot be read: say which way
            return [self._get(key) for key in wanted]
        return found

    def _check(self, rows: RdictIter) -> None:
        """An iterator ends at what it cannot read as it does at the last row; only its status tells them apart."""
        try:
            rows.status()
        except Exception as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> DataDirectoryError:
        """A block that fails its checksum costs what is in it; a disk that does not read costs the process."""
        log.error("the store cannot be read", error=str(error))
        if not str(error).startswith(_DAMAGED):
            self._fatal(error)
        path = self._db.path() if self._db is not None else ""
        return DataDirectoryError(
            f"the store {path} is damaged ({error}): restore the directory from a backup"
        )

    # What is not there is not noted: a client may name as many as it likes.

    def conversation(self, key: str) -> Conversation | None:
        recent = self._conversations.young.get(key) or self._conversations.get(key)
        if recent is not None:
            return recent
        row: Conversation | None = self._tail.conversation(key)
        if row is MISSING:
            row = self._stored_conversation(key)
        if row is not None:
            self._conversations.put(key, row)
        return row

    def conversations(self, names: Collection[str]) -> dict[str, Conversation]:
        young = self._conversations.young
        found = {name: row for name in names if (row := young.get(name)) is not None}
        if len(found) == len(names):
            return found
        fresh = []  # direct chats that neither cache nor tail knows: nearly all of them are new
        for name in names:
            if name in found:
                continue
            row = self._conversations.get(name)
            if row is None:
                direct = name[:1] != "#" and name.isascii()
                if direct and self._tail.conversation(name) is MISSING:
                    fresh.append(name)
                    continue
                row = self.conversation(name)
            if row is not None:
                found[name] = row
        for name, first in zip(fresh, self._get_many([keys.run(name, 1) for name in fresh]), strict=True):
            if first is not None:
                found[name] = row = self._stored_direct(name, first)
                self._conversations.put(name, row)
        return found

    def _stored_conversation(self, key: str) -> Conversation | None:
        if not key.isascii():
            return None
        if key[:1] == "#":
            raw = self._get(keys.conversation(key))
            return decode_conversation(raw) if raw is not None else None
        # The first message is asked for first: mostly the chat is new, and it is not there.
        run = self._get(keys.run(key, 1))
        return self._stored_direct(key, run) if run is not None else None

    def _stored_direct(self, key: str, run: bytes) -> Conversation:
        """`run`: its first."""
        raw = self._get(keys.conversation(key))
        row = decode_conversation(raw) if raw is not None else _newest(run)
        # What came since the row was written; each run begins where the one before ends.
        while (later := self._get(keys.run(key, row.last_seq + 1))) is not None:
            row = _newest(later)
        return row

    def user(self, user: str) -> User | None:
        recent = self._users.young.get(user) or self._users.get(user)
        if recent is not None:
            return recent
        row: User | None = self._tail.user(user)
        if row is MISSING:
            raw = self._get(keys.user(user))
            row = decode_user(raw) if raw is not None else None
        if row is not None:
            self._users.put(user, row)
        return row

    def membership(self, user: str, conversation: str) -> Membership | None:
        at = (user, conversation)
        recent = self._memberships.young.get(at) or self._memberships.get(at)
        if recent is not None:
            return recent
        row: Membership | None = self._tail.membership(user, conversation)
        if row is MISSING:
            row = self._stored_membership(user, conversation)
        if row is not None:
            self._memberships.put(at, row)
        return row

    def _stored_membership(self, user: str, conversation: str) -> Membership | None:
        raw = self._get(keys.membership(user, conversation))
        if raw is not None:
            return decode_membership(raw)
        if not conversation.startswith(f"{user}|"):
            return None
        run = self._get(keys.run(conversation, 1))  # see `_memberships_of`
        return opened(decode_run(run)[0].at) if run is not None else None

    def find(self, sender: str, conversation: str, key: str) -> Sent | None:
        found = self._tail.find((sender, conversation, key))
        if found is not None:
            return found
        raw = self._get(keys.sent(sender, conversation, key))
        if raw is not None:
            return decode_sent(raw)
        for seq in self._first(conversation).seqs.get(hash((sender, key)), ()):
            for message in self.messages(conversation, seq, seq, 1):
                if message.sender == sender and message.key == key:
                    return message.sent()
        return None

    def _first(self, conversation: str) -> _First:
        """Where the first messages on disk went, FIRST at most: those read before, and what has come since. No
        iterator is needed, because each run begins where the one before ends."""
        first = self._firsts.get(conversation) or _First()
        known = first.count
        while first.count < FIRST and (raw := self._get(keys.run(conversation, first.count + 1))) is not None:
            first.add(decode_run(raw))
        if first.count > known:
            self._firsts.put(conversation, first)
        return first

    def unstored(self, offset: int) -> list[int]:
        found = self._tail.unstored(offset)
        if found is None:
            raw = self._get(keys.unstored(offset))
            found = decode_ids(raw) if raw is not None else []
        return found

    def members(self, group: str, after: int = 0, limit: int = 1000) -> list[tuple[int, str]]:
        prefix = keys.members(group)
        rows = _scan(self._rows_from(prefix, keys.number(after + 1)), keys.read_number, limit,
                     self._tail.members(group), after)  # fmt: skip
        return [(position, user.decode() if isinstance(user, bytes) else user) for position, user in rows]

    def memberships(
        self, user: str, after: str = "", limit: int = 1000, groups: bool = False
    ) -> list[tuple[str, Membership]]:
        fresh = self._tail.memberships(user)
        if groups:
            fresh = {key: row for key, row in fresh.items() if key[0] == "#"}
        return _scan(self._memberships_of(user, after.encode(), groups), bytes.decode, limit, fresh, after)

    def _memberships_of(self, user: str, after: bytes, groups: bool) -> Iterator[tuple[bytes, Membership]]:
        """The rows on disk. The first user of a direct chat has none until its cursor moves: that there are messages
        says as much (half the rows of a new chat; a third of all that a first message writes)."""
        rows = self._rows_from(keys.memberships(user), after + b"\x00")
        if groups:  # they sort below every direct chat
            rows = takewhile(lambda row: row[0].startswith(b"#"), rows)
        said: Iterator[tuple[bytes, bool, Any]] = ((name, False, raw) for name, raw in rows)
        opens = ((name, True, at) for name, at in (() if groups else self._directs(user, after)))
        for name, either in groupby(merge(said, opens), itemgetter(0)):
            _, implied, found = next(either)
            yield name, opened(decode_run(found.value())[0].at) if implied else decode_membership(found)

    def _directs(self, user: str, after: bytes) -> Iterator[tuple[bytes, RdictIter]]:
        """(key, what stands at the first run) of the direct chats whose first user this is. Mostly there is a row, and
        nobody reads the run: it may be long."""
        assert self._db is not None
        prefix = f"m{user}|".encode()
        rows = self._db.iter(ReadOptions())
        rows.seek(max(prefix, b"m" + after + b"\x01"))  # behind the last run of `after`
        while rows.valid() and (key := rows.key()).startswith(prefix):
            name = key[1 : key.index(0)]
            yield name, rows
            rows.seek(b"m" + name + b"\x01")
        if not rows.valid():
            self._check(rows)

    def _rows_from(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key without prefix, value) of the rows on disk, from `prefix` + `start` on."""
        assert self._db is not None
        rows = self._db.iter(ReadOptions())
        rows.seek(prefix + start)
        cut = len(prefix)
        while rows.valid():
            key: bytes = rows.key()
            if not key.startswith(prefix):
                return
            yield key[cut:], rows.value()
            rows.next()
        self._check(rows)

    def messages(
        self, conversation: str, low: int, high: int, limit: int, newest: bool = False
    ) -> list[Message]:
        high = min(high, _MAX_SEQ)
        tail = self._tail.messages(conversation)
        border = tail[0].seq if tail else high + 1  # what is below is on disk
        if not newest:
            found = (
                list(self._stored(conversation, low, min(high, border - 1), limit)) if low < border else []
            )
            if len(found) < limit and high >= border:
                start = max(low - border, 0)
                found += islice(tail, start, min(high - border + 1, start + limit - len(found)))
            return _bounded(found, limit)
        recent: list[Message] = []
        if high >= border:
            stop = min(high - border + 1, len(tail))
            recent = list(islice(tail, max(low - border, stop - limit, 0), stop))[::-1]
        if len(recent) < limit and low < border:
            recent += self._stored(conversation, low, min(high, border - 1), limit - len(recent), newest=True)
        return _bounded(recent, limit)[::-1]

    def _stored(
        self, conversation: str, low: int, high: int, limit: int, newest: bool = False
    ) -> Iterator[Message]:
        """Messages on disk from one end of [low, high], whole runs at a time."""
        if low > high:
            return
        assert self._db is not None
        prefix = keys.messages(conversation)
        rows = self._db.iter(ReadOptions())
        rows.seek_for_prev(prefix + keys.number(high if newest else low))
        if not newest and not (rows.valid() and rows.key().startswith(prefix)):
            if not rows.valid():
                self._check(rows)
            rows.seek(prefix + keys.number(low))
        count = size = 0
        while rows.valid() and rows.key().startswith(prefix):
            run = decode_run(rows.value())
            if (run[-1].seq < low) if newest else (run[0].seq > high):
                return
            for message in reversed(run) if newest else run:
                if low <= message.seq <= high:
                    yield message
                    count += 1
                    size += len(message.content)
                    if count >= limit or size >= READ_BYTES:
                        return
            if newest:
                rows.prev()
            else:
                rows.next()
        if not rows.valid():
            self._check(rows)


def _newest(run: bytes) -> Conversation:
    """Of a direct chat whose last run this is."""
    message = decode_run(run)[-1]
    return Conversation(message.seq, message.at)


def _bounded(messages: list[Message], limit: int) -> list[Message]:
    """The first `limit`, or as many as make up READ_BYTES; one at least."""
    size = 0
    for count, message in enumerate(messages[:limit]):
        size += len(message.content)
        if size > READ_BYTES and count:
            return messages[:count]
    return messages[:limit]


def _scan(
    rows: Iterator[tuple[bytes, Any]],
    name: Callable[[bytes], Any],
    limit: int,
    fresh: dict[Any, Any],
    after: Any,
) -> list[tuple[Any, Any]]:
    """The first `limit` rows past `after`, the tail's `fresh` over those on disk (None deletes)."""
    found: dict[Any, Any] = {}
    last = MISSING
    for key, value in rows:
        at = name(key)
        if at not in fresh:
            found[at] = value
            if len(found) >= limit:
                last = at
                break
    for at, value in fresh.items():
        if value is not None and at > after and (last is MISSING or at < last):
            found[at] = value
    return sorted(found.items())[:limit]
