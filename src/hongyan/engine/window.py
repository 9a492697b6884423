"""The duplicate window: which messages of the recent past a resend without `retry` is found among.

Pure, and a function of the journal alone: it runs on log time (never the wall clock) and is filled only
by durable records, so a replay decides every duplicate as the first run did.
"""

from __future__ import annotations

from collections import deque

Key = tuple[str, str, str]  # sender, conversation key, client's message_id
# What stands for a key: its hash, a few bytes instead of three strings a message for five minutes. Two keys may
# have one hash (which differs from process to process), so a mark only says where to look: what is found counts if
# it is the message that the mark names. A key whose hash is taken by another's stands for itself.
Mark = int | Key


class Window:
    """The newest `limit` messages (and what else their oldest batch holds), none older than `span_ms` of
    log time (protocol.md, `send_message`).

    `entries`: a key's mark -> the message's id. Whole batches are forgotten, not single messages: one dict for
    finding, one list of marks a batch for forgetting. A key is in one batch at most, because a message that is
    found is not added again.
    """

    __slots__ = ("_batches", "_limit", "_notes", "_span_ms", "entries", "odd")

    def __init__(self, span_ms: int, limit: int) -> None:
        self.entries: dict[Mark, int] = {}
        self.odd: set[Key] = set()  # the keys in it that stand for themselves: none, as good as always
        self._batches: deque[tuple[int, int, list[Mark]]] = deque()  # log time, first offset, marks
        self._span_ms = span_ms
        self._limit = limit
        self._notes: deque[int] = deque()  # where batches with a DedupWindow record begin

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, key: Key, id: int) -> Mark:
        """Put in a message that is not in it. Returns its mark, for `close_batch`."""
        mark: Mark = hash(key)
        if mark in self.entries:
            mark = key
            self.odd.add(key)
        self.entries[mark] = id
        return mark

    def names(self, key: Key, id: int) -> bool:
        """Whether the message `id`, whose key this is, is in the window."""
        return id in (self.entries.get(hash(key)), self.entries.get(key))

    def close_batch(self, marks: list[Mark], log_ms: int, offset: int) -> None:
        """Note the `marks` put into `entries` by the batch that began at `offset`. Batches come in order."""
        if not marks:
            return
        batches = self._batches
        batches.append((log_ms, offset, marks))
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
        marks = self._batches.popleft()[2]
        for mark in marks:
            del entries[mark]
        if self.odd:
            self.odd.difference_update(marks)
