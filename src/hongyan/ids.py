"""Snowflake ids: 41 bits of milliseconds since `EPOCH_MS`, 10 of node, 12 of sequence."""

from __future__ import annotations

from collections.abc import Callable

EPOCH_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z
RESERVE_MS = 1000
_TIME_BITS, _NODE_BITS, _SEQUENCE_BITS = 41, 10, 12
_TIME_SHIFT = _NODE_BITS + _SEQUENCE_BITS
_SEQUENCES = 1 << _SEQUENCE_BITS
END_MS = EPOCH_MS + (1 << _TIME_BITS)  # in 2093: past it an id would need a 64th bit


def time_ms(id: int) -> int:
    """The id's time, ms since the Unix epoch."""
    return (id >> _TIME_SHIFT) + EPOCH_MS


class Snowflake:
    """Ids that ascend within a process and never repeat, whatever the clock does.

    A clock that steps back borrows from the last millisecond used: the ids go on from there, nothing
    waits. Past 4,096 ids in a millisecond the next one is borrowed. Across a restart: ids are issued
    only for milliseconds below a reserved mark; before one at or beyond it leaves, `reserve(mark)` is
    called with a mark one second ahead of it. A start with `floor_ms` = the last mark is therefore above
    every id issued, also where the clock went back while the process was down.
    """

    __slots__ = ("_base", "_mark", "_ms", "_node", "_now_ms", "_reserve", "_sequence")

    def __init__(
        self,
        node: int,
        now_ms: Callable[[], int],
        floor_ms: int = 0,
        reserve: Callable[[int], None] | None = None,
    ) -> None:
        """`now_ms`: the wall clock, ms since the Unix epoch. No id's time is below `floor_ms`."""
        if not 0 <= node < 1 << _NODE_BITS:
            raise ValueError(f"node must be 0 to {(1 << _NODE_BITS) - 1}, not {node}")
        self._node = node << _SEQUENCE_BITS
        self._now_ms = now_ms
        self._reserve = reserve
        self._mark = 0
        # Everything before the floor counts as used up, so the first id begins a millisecond.
        self._ms = max(floor_ms, EPOCH_MS) - 1
        self._sequence = _SEQUENCES - 1
        self._base = 0  # the id of `_ms` with sequence 0

    def next(self) -> int:
        """A new id. Raises OverflowError past the year 2093, and what `reserve` raises: then nothing was
        issued."""
        return self.at(self._now_ms())

    def at(self, now: int) -> int:
        """The same, for a caller that has just read the clock."""
        if now > self._ms:
            self._begin(now)
        elif (sequence := self._sequence + 1) < _SEQUENCES:
            self._sequence = sequence
            return self._base + sequence
        else:
            self._begin(self._ms + 1)
        return self._base

    def raise_floor(self, ms: int) -> None:
        """Issue nothing before `ms` from now on (start-up: past the newest id found in the journal)."""
        if ms > self._ms:
            self._ms = ms - 1
            self._sequence = _SEQUENCES - 1

    def _begin(self, ms: int) -> None:
        """Go on with the first id of millisecond `ms`, reserved before anything of it is issued."""
        if ms >= self._mark:
            if ms >= END_MS:
                raise OverflowError("the clock is past what a 41-bit id can say (the year 2093)")
            mark = min(ms + RESERVE_MS, END_MS)
            if self._reserve is not None:
                self._reserve(mark)
            self._mark = mark
        self._ms = ms
        self._sequence = 0
        self._base = (ms - EPOCH_MS) << _TIME_SHIFT | self._node
