"""The duplicate window: which messages of the recent past a resend without `retry` is found among.

Pure, and a function of the journal alone: it runs on log time (never the wall clock) and is filled only
by durable records, so a replay decides every duplicate as the first run did.
"""

from __future__ import annotations

from typing import NamedTuple

from hongyan.protocol.state import Sent

Key = tuple[str, str, str]  # sender, conversation key, client's message_id


class _Entry(NamedTuple):
    sent: Sent
    log_ms: int
    offset: int


class Window:
    """At most `limit` messages, none older than `span_ms` of log time (protocol.md, `send_message`)."""

    __slots__ = ("_entries", "_limit", "_span_ms")

    def __init__(self, span_ms: int, limit: int) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._span_ms = span_ms
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key, log_ms: int) -> Sent | None:
        entry = self._entries.get(key)
        if entry is None or log_ms - entry.log_ms > self._span_ms:
            return None
        return entry.sent

    def add(self, key: Key, sent: Sent, log_ms: int, offset: int) -> None:
        """Remember a message; `offset` is its record's. Calls come in offset order."""
        entries = self._entries
        if key in entries:  # outlived the span: the newer one takes its place at the end of the order
            del entries[key]
        entries[key] = _Entry(sent, log_ms, offset)
        if len(entries) > self._limit:
            del entries[next(iter(entries))]

    def oldest_offset(self, log_ms: int) -> int | None:
        """Forget what `log_ms` (the newest record's) has passed; the oldest offset still needed, if any."""
        entries = self._entries
        while entries:
            key = next(iter(entries))
            entry = entries[key]
            if log_ms - entry.log_ms <= self._span_ms:
                return entry.offset
            del entries[key]
        return None
