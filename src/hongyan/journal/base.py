"""The journal port: an ordered, durable log of batches of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from hongyan.protocol.records import Record


class Entry(NamedTuple):
    """One durable batch. Its records have the offsets `first` … `first + len(records) - 1`."""

    first: int
    log_ms: int
    records: Sequence[Record]

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1


class Journal(Protocol):
    """Offsets number records: 1, 2, 3, …, without holes, and never go back, also across restarts
    and trims. Entries come back in order, each whole or not at all."""

    @property
    def last(self) -> int:
        """The offset of the newest durable record; 0 for a new journal."""

    @property
    def first(self) -> int:
        """The offset of the oldest record still kept; `last + 1` where there is none."""

    @property
    def identity(self) -> str:
        """A random name given at creation: store and journal of one data directory share it."""

    async def append(self, records: Sequence[Record], log_ms: int) -> Entry:
        """Make one batch (at least one record) durable: when this returns it survives kill -9 and
        power loss. One append at a time.

        Raises `Unavailable` (a full disk, a lock held from outside): the outcome is unknown to clients, the journal is as
        before or holds the batch's offsets free, and later appends may work again.
        Raises OSError for any other I/O error: the process must end.
        """

    def read(self, after: int) -> Iterator[Entry]:
        """Entries with `last` > `after`, ascending (start-up only; blocks). The first may begin before.

        Raises `DataDirectoryError` for a damaged row or a hole, and for a record of a newer version.
        """

    async def trim(self, upto: int) -> None:
        """Forget entries whose `last` <= `upto`, but never the newest entry."""

    async def close(self) -> None:
        """Idempotent. Waits for an append under way."""
