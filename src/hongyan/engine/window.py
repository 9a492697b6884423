"""The duplicate window: which messages of the recent past a resend without `retry` is found among.

Pure, and a function of the journal alone: it runs on log time (never the wall clock) and is filled only
by durable records, so a replay decides every duplicate as the first run did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hongyan.protocol.state import Sent

Key = tuple[str, str, str]  # sender, conversation key, client's message_id


class Window:
    """The newest `limit` messages (and what else their oldest batch holds), none older than `span_ms` of
    log time (protocol.md, `send_message`).

    Whole batches are forgotten, not single messages: one dict for finding, one list of keys a batch for
    forgetting. A key is in one batch at most, because a message that is found is not added again.
    """

    __slots__ = ("_batches", "_limit", "_notes", "_span_ms", "entries")

    def __init__(self, span_ms: int, limit: int) -> None:
        self.entries: dict[Key, Sent] = {}
        self._batches: deque[tuple[int, int, list[Key]]] = deque()  # log time, first offset, keys
        self._span_ms = span_ms
        self._limit = limit
        self._notes: deque[int] = deque()  # where batches with a DedupWindow record begin

    def __len__(self) -> int:
        return len(self.entries)

    def close_batch(self, keys: Iterable[Key], log_ms: int, offset: int) -> None:
        """Note the `keys` put into `entries` by the batch that began at `offset`. Batches come in order."""
        noted = list(keys)
        if not noted:
            return
        batches = self._batches
        batches.append((log_ms, offset, noted))
        while len(self.entries) - len(batches[0][2]) >= self._limit:
            self._forget_oldest()

    def forget(self, log_ms: int) -> None:
        """Forget what has passed the span at `log_ms`: of the batch that comes next, or the newest."""
        batches = self._batches
        while batches and log_ms - batches[0][0] > self._span_ms:
            self._forget_oldest()

    def oldest_offset(self, log_ms: int) -> int | None:
        """Forget what `log_ms` (the newest record's) has passed; the oldest offset still needed, if any."""
        self.forget(log_ms)
        return self._batches[0][1] if self._batches else None

    def resize(self, span_ms: int, limit: int, offset: int) -> None:
        """A DedupWindow record, in the batch that begins at `offset`. What is forgotten stays forgotten."""
        self._span_ms = span_ms
        self._limit = limit
        self._notes.append(offset)

    def holds(self, span_ms: int, limit: int) -> bool:
        return (self._span_ms, self._limit) == (span_ms, limit)

    def has_passed(self, now_ms: int) -> bool:
        """Whether a record of `now_ms` would let the window forget something."""
        return bool(self._batches) and now_ms - self._batches[0][0] > self._span_ms

    @property
    def newest_note(self) -> int:
        """Where the batch of the newest DedupWindow record begins; 0: there is none."""
        return self._notes[-1] if self._notes else 0

    def trimmable(self, upto: int) -> int:
        """The last offset, `upto` at most, that the journal may forget and still begin with a note."""
        notes = self._notes
        while len(notes) > 1 and notes[1] <= upto + 1:
            notes.popleft()
        return notes[0] - 1 if notes and notes[0] <= upto + 1 else 0

    def _forget_oldest(self) -> None:
        entries = self.entries
        for key in self._batches.popleft()[2]:
            del entries[key]
