"""Snowflake ids: 41 bits of milliseconds since `EPOCH_MS`, 10 of node, 12 of sequence."""

from __future__ import annotations

from collections.abc import Callable

from hongyan.errors import Refused, refused

EPOCH_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z
RESERVE_MS = 60_000  # so far ahead the mark is kept
_TIME_BITS, _NODE_BITS, _SEQUENCE_BITS = 41, 10, 12
_TIME_SHIFT = _NODE_BITS + _SEQUENCE_BITS
_SEQUENCES = 1 << _SEQUENCE_BITS
ALL_SEQUENCES = range(_SEQUENCES)
END_MS = EPOCH_MS + (1 << _TIME_BITS)  # in 2093: past it an id would need a 64th bit


def lane(number: int, of: int) -> range:
    """The sequences of one of `of` gateway processes, `number` from 0 on; -1: of their engine. They share a node, so
    they share its milliseconds: the engine, whose ids name messages, has half of each."""
    half = _SEQUENCES // 2
    if number < 0:
        return range(half)
    size = half // of
    return range(half + number * size, half + (number + 1) * size)


def time_ms(id: int) -> int:
    """The id's time, ms since the Unix epoch."""
    return (id >> _TIME_SHIFT) + EPOCH_MS


class Snowflake:
    """Ids that ascend within a process and never repeat, whatever the clock does.

    A clock that steps back borrows from the last millisecond used: the ids go on from there, nothing
    waits. Past 4,096 ids in a millisecond the next one is borrowed.

    Across a restart: what names something stored (`next`, `at`) is issued only for milliseconds below the
    mark, which was saved before it was given here (`extend`). A start with `floor_ms` = the mark saved last is
    therefore above every such id, also where the clock went back while the process was down. A clock
    beyond the mark (it stepped ahead, or the mark cannot be saved) borrows too, from what is left below it:
    a quarter of a billion ids in a full span.
    """

    __slots__ = ("_base", "_first", "_last", "_mark", "_ms", "_node", "_now_ms", "_sequence")

    def __init__(
        self, node: int, now_ms: Callable[[], int], floor_ms: int = 0, mark_ms: int = END_MS,
        sequences: range = ALL_SEQUENCES,
    ) -> None:  # fmt: skip
        """`now_ms`: the wall clock, ms since the Unix epoch. No id's time is below `floor_ms`. `sequences`: which of
        a millisecond's are this process's (`lane`)."""
        if not 0 <= node < 1 << _NODE_BITS:
            raise ValueError(f"node must be 0 to {(1 << _NODE_BITS) - 1}, not {node}")
        self._first, self._last = sequences[0], sequences[-1]
        self._node = node << _SEQUENCE_BITS
        self._now_ms = now_ms
        self._mark = mark_ms
        # Everything before the floor counts as used up, so the first id begins a millisecond.
        self._ms = max(floor_ms, EPOCH_MS) - 1
        self._sequence = self._last
        self._base = 0  # the id of `_ms` with sequence 0

    def next(self) -> int:
        """A new id. Raises Refused `unavailable` where all below the mark are used up, OverflowError past the
        year 2093: then nothing was issued."""
        return self.at(self._now_ms())

    def at(self, now: int) -> int:
        """The same, for a caller that has just read the clock."""
        if self._ms < now < self._mark:
            self._begin(now)
        elif self._ms >= self._mark:
            raise self._used_up()
        elif self._sequence < self._last:
            self._sequence = sequence = self._sequence + 1
            return self._base + sequence
        elif self._ms + 1 < self._mark:
            self._begin(self._ms + 1)
        else:
            raise self._used_up()
        return self._base + self._sequence

    def envelope(self) -> int:
        """An id for what is stored nowhere (an error, an answer, a push of presence): unique in the process,
        and never refused, so that nothing that is said depends on a disk."""
        try:
            return self.at(self._now_ms())
        except (Refused, OverflowError):
            self._begin(min(self._ms + 1, END_MS - 1))
            return self._base + self._sequence

    def to_reserve(self) -> int:
        """The mark that is to be saved now, and then given to `extend`; 0 while enough is reserved."""
        reached = max(self._now_ms(), self._ms + 1)
        if self._mark >= min(reached + RESERVE_MS // 2, END_MS):
            return 0
        return min(reached + RESERVE_MS, END_MS)

    def extend(self, mark_ms: int) -> None:
        """Ids below `mark_ms` may be issued from now on: it is saved."""
        self._mark = max(self._mark, mark_ms)

    def raise_floor(self, ms: int) -> None:
        """Issue nothing before `ms` from now on (start-up: past the newest id found in the journal)."""
        if ms > self._ms:
            self._ms = ms - 1
            self._sequence = self._last

    def _begin(self, ms: int) -> None:
        """Go on with the first id of millisecond `ms`."""
        self._ms = ms
        self._sequence = self._first
        self._base = (ms - EPOCH_MS) << _TIME_SHIFT | self._node

    def _used_up(self) -> Exception:
        if self._mark >= END_MS:
            return OverflowError("the clock is past what a 41-bit id can say (the year 2093)")
        return refused("unavailable", "no new ids: the clock mark cannot be saved; resend with retry")
