"""Group commit: admit → journal → fold → store → tell, one batch at a time.

While one batch is being made durable the next one collects, so an idle system waits for no timer and a
busy one fsyncs once for hundreds of messages. Nothing is told to anyone before the journal has returned
and the store has the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hongyan.engine.sequencer import Sequencer
from hongyan.errors import Refused, Unavailable, WireError, refused
from hongyan.journal.base import Entry, Journal
from hongyan.link.base import GatewayApi, Origin, Told
from hongyan.metrics import Counters
from hongyan.protocol.outcomes import Done, Outcome
from hongyan.protocol.records import Record, Send
from hongyan.store.base import Store

# A send is answered within 10 s whatever happens (protocol.md); past this it gets `unavailable`.
ANSWER_MS = 9_000
# What one record weighs in memory beside its content: Struct, strings, list slots.
RECORD_OVERHEAD = 400

_NO_SPACE = WireError("unavailable", "storage refuses writes for now; resend with retry")
_TOO_SLOW = WireError("unavailable", "storage does not answer in time; resend with retry")

Waiter = Origin | asyncio.Future[Outcome] | None


class Committer:
    """Owns the order. `now_ms` is the wall clock; log time never goes back."""

    def __init__(
        self,
        journal: Journal,
        store: Store,
        sequencer: Sequencer,
        counters: Counters,
        *,
        now_ms: Callable[[], int],
        last_log_ms: int,
        batch_records: int,
        batch_bytes: int,
        max_pending_bytes: int,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._journal = journal
        self._store = store
        self._sequencer = sequencer
        self._counters = counters
        self._now_ms = now_ms
        self._batch_records = batch_records
        self._batch_bytes = batch_bytes
        self._max_pending_bytes = max_pending_bytes
        self._fatal = fatal
        self.last_log_ms = last_log_ms
        self.gateway: GatewayApi | None = None
        self._records: list[Record] = []
        self._waiters: list[Waiter] = []
        self._flying: list[Waiter] = []
        self._flying_at = 0
        self._pending_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="committer")

    @property
    def pending_bytes(self) -> int:
        """Admitted and not yet durable."""
        return self._pending_bytes

    def admit(self, record: Record, waiter: Waiter) -> None:
        """Put a record into the next batch. Raises Refused `busy` past the limits: nothing is stored."""
        if self._pending_bytes >= self._max_pending_bytes or self._store.full:
            self._counters.busy_refusals += 1
            raise refused("busy", "the server is behind with its writes", retry_after_ms=500)
        if self._closing:
            raise refused("unavailable", "the server is stopping")
        if not self._records:
            self._idle.clear()
        self._records.append(record)
        self._waiters.append(waiter)
        self._pending_bytes += RECORD_OVERHEAD + (len(record.content) if type(record) is Send else 0)
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None

    async def submit(self, record: Record) -> Outcome:
        """Admit and wait for the outcome. Raises Refused (`busy`, `unavailable`)."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.admit(record, future)
        try:
            async with asyncio.timeout(ANSWER_MS / 1000):
                return await future
        except TimeoutError:
            raise Refused(_TOO_SLOW) from None

    async def drain(self) -> None:
        """Wait until everything admitted so far has been told."""
        await self._idle.wait()

    async def close(self) -> None:
        """Commit what was admitted, then stop. Idempotent."""
        self._closing = True
        if self._task is None:
            return
        await self.drain()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None

    def expire(self) -> None:
        """Answer the sends of a batch that the journal does not return (the engine calls it ten times a second)."""
        if self._flying and self._now_ms() - self._flying_at > ANSWER_MS:
            for queue in (self._flying, self._waiters):
                late = [waiter for waiter in queue if isinstance(waiter, Origin)]
                queue[:] = [None if isinstance(waiter, Origin) else waiter for waiter in queue]
                if late and self.gateway is not None:
                    self.gateway.refuse(late, _TOO_SLOW)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._records:
                    self._idle.set()
                    self._wake = loop.create_future()
                    await self._wake
                await self._commit()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a failed fsync, a broken fold: nobody goes on after that
            self._fatal(error)

    async def _commit(self) -> None:
        batch, weight = self._take()
        self._flying_at = self._now_ms()
        log_ms = max(self._flying_at, self.last_log_ms)
        counters = self._counters
        began = time.perf_counter()
        try:
            entry = await self._journal.append(batch, log_ms)
        except Unavailable:
            counters.journal_failures += 1
            waiters, self._flying = self._flying, []
            self._pending_bytes -= weight
            self._refuse(waiters)
            return
        self.last_log_ms = log_ms
        counters.journal_append_seconds.observe(time.perf_counter() - began)
        counters.batches += 1
        counters.batch_records += len(batch)
        outcomes = self.fold(entry)
        waiters, self._flying = self._flying, []
        self._pending_bytes -= weight
        self._tell(entry, outcomes, waiters)
        sends = sum(type(waiter) is Origin for waiter in waiters)
        if sends:
            counters.ack_seconds.observe(max(0, self._now_ms() - batch[0].at) / 1000, sends)

    def fold(self, entry: Entry) -> list[Outcome]:
        """Fold a durable entry and give the store its rows (also the replay at start-up)."""
        sequencer = self._sequencer
        sequencer.begin()
        fold, log_ms = sequencer.fold, entry.log_ms
        outcomes = [fold(record, offset, log_ms) for offset, record in enumerate(entry.records, entry.first)]
        self._store.apply(entry.last, sequencer.changes)
        return outcomes

    def _take(self) -> tuple[list[Record], int]:
        """The next batch and its weight; its waiters become `_flying`."""
        records, waiters = self._records, self._waiters
        size = 0
        for count, record in enumerate(records, 1):
            size += RECORD_OVERHEAD + (len(record.content) if type(record) is Send else 0)
            if count >= self._batch_records or size >= self._batch_bytes:
                break
        if count == len(records):
            self._records, self._waiters = [], []
            self._flying = waiters
            return records, size
        batch = records[:count]
        self._flying = waiters[:count]
        del records[:count], waiters[:count]
        return batch, size

    def _tell(self, entry: Entry, outcomes: list[Outcome], waiters: list[Waiter]) -> None:
        told: list[Told] = []
        for record, outcome, waiter in zip(entry.records, outcomes, waiters, strict=True):
            if type(record) is Send:
                told.append(Told(waiter if type(waiter) is Origin else None, record.sender, outcome))
                continue
            if isinstance(waiter, asyncio.Future) and not waiter.done():
                waiter.set_result(outcome)
            if type(outcome) is not Done:
                told.append(Told(None, getattr(record, "user", ""), outcome))
        if told and self.gateway is not None:
            self.gateway.tell(told)

    def _refuse(self, waiters: list[Waiter]) -> None:
        origins = []
        for waiter in waiters:
            if isinstance(waiter, Origin):
                origins.append(waiter)
            elif waiter is not None and not waiter.done():
                waiter.set_exception(Refused(_NO_SPACE))
        if origins and self.gateway is not None:
            self.gateway.refuse(origins, _NO_SPACE)
