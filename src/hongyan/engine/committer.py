"""Group commit: admit → journal → fold → store → tell, one batch at a time.

While one batch is being made durable the next one collects, so an idle system waits for no timer and a
busy one fsyncs once for hundreds of messages. Nothing is told to anyone before the journal has returned
and the store has the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hongyan.engine.sequencer import Sequencer
from hongyan.errors import Refused, Unavailable, WireError, refused
from hongyan.journal.base import Entry, Journal
from hongyan.link.base import GatewayApi
from hongyan.metrics import Counters
from hongyan.protocol.outcomes import Outcome
from hongyan.protocol.records import Record, Send
from hongyan.store.base import Store

# A send is answered within 10 s whatever happens (protocol.md), and may have waited three behind another request
# of its connection; past this it gets `unavailable`.
ANSWER_MS = 6_500
# What one record weighs in memory beside its content: Struct, strings, list slots.
RECORD_OVERHEAD = 400
# Turns of the loop before a batch is taken: what has arrived by now is read, and shares its fsync. No timer;
# an idle server spends microseconds. (At 10,000 a second: p50 0.6 to 0.3 ms, a tenth less CPU.)
GATHER_TURNS = 2
# Sends marked `retry` in one batch: each is looked up by the fold, in up to 64 reads if it was long ago that its
# conversation was asked for.
BATCH_RETRIES = 256

_NO_SPACE = WireError("unavailable", "storage refuses writes for now; resend with retry")
_TOO_SLOW = WireError("unavailable", "storage does not answer in time; resend with retry")


class Submit(Protocol):
    """`Committer.submit`."""

    async def __call__(self, record: Record, weight: int = 0, always: bool = False) -> Outcome: ...


class _Batch:
    """What is committed as one."""

    __slots__ = ("commands", "records", "retries", "sessions", "since", "weight")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.sessions: list[int] = []  # who waits for each record: a send's session, 0 for no one
        self.commands: list[tuple[int, asyncio.Future[Outcome]]] = []  # (place in `records`, who waits)
        self.weight = 0  # bytes
        self.retries = 0  # sends that are looked up in the store
        self.since = 0  # monotonic ms: when the first record came

    def take_sends(self) -> list[tuple[int, str]]:
        """The sends that are waited for, as (session, ref); from then on no one waits for them."""
        waited = [
            (session, record.key)
            for session, record in zip(self.sessions, self.records, strict=True)
            if session and type(record) is Send
        ]
        self.sessions = [0] * len(self.records)
        return waited

    def drop_sends(self) -> int:
        """Keep the commands only. Returns the bytes that this takes off."""
        dropped = sum(
            len(record.content) + RECORD_OVERHEAD for record in self.records if type(record) is Send
        )
        kept = [(self.records[place], future) for place, future in self.commands]
        self.records = [record for record, _ in kept]
        self.commands = [(place, future) for place, (_, future) in enumerate(kept)]
        self.sessions = [0] * len(kept)
        self.weight -= dropped
        self.retries = 0
        return dropped


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
        monotonic_ms: Callable[[], int],
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
        self._monotonic_ms = monotonic_ms
        self._batch_records = batch_records
        self._batch_bytes = batch_bytes
        self._max_pending_bytes = max_pending_bytes
        self._fatal = fatal
        self.last_log_ms = 0  # the journal's newest; set after recovery
        self.refusing = False  # the journal refused the newest batch: a full disk, a lock
        self.gateway: GatewayApi | None = None
        self._open = _Batch()  # collects
        self._full: deque[_Batch] = deque()  # are complete, and wait for their turn
        self._flying: _Batch | None = None  # is being made durable
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

    @property
    def behind(self) -> bool:
        """Past the limits: only what is `always` admitted is."""
        return self._pending_bytes >= self._max_pending_bytes or self._store.full

    def admit(
        self, record: Record, session: int, weight: int = 0, always: bool = False, retry: bool = False
    ) -> _Batch:
        """Put a record into the next batch; the gateway is told the outcome for `session` (0: nobody waits).
        `weight`: bytes beside the record itself; `retry`: the fold looks it up in the store. Raises Refused (`busy`
        past the limits, unless `always`; `unavailable`): then nothing is stored."""
        if not always and (self._pending_bytes >= self._max_pending_bytes or self._store.full):  # `behind`
            self._counters.busy_refusals += 1
            raise refused("busy", "the server is behind with its writes", retry_after_ms=500)
        if self._closing:
            raise refused("unavailable", "the server is stopping")
        batch = self._open
        if batch.records and (
            len(batch.records) >= self._batch_records
            or batch.weight >= self._batch_bytes
            or batch.retries >= BATCH_RETRIES
        ):
            self._full.append(batch)
            batch = self._open = _Batch()
        if not batch.records:
            batch.since = self._monotonic_ms()
        batch.records.append(record)
        batch.sessions.append(session)
        weight += RECORD_OVERHEAD
        batch.weight += weight
        if retry:
            batch.retries += 1
        self._pending_bytes += weight
        if self._wake is not None:
            self._idle.clear()
            self._wake.set_result(None)
            self._wake = None
        return batch

    async def submit(self, record: Record, weight: int = 0, always: bool = False) -> Outcome:
        """Admit a record (see `admit`) and wait for its outcome. Raises Refused (`busy`, `unavailable`)."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        batch = self.admit(record, 0, weight, always)
        batch.commands.append((len(batch.records) - 1, future))
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
        """Answer the sends that have waited too long for the journal (the engine calls it ten times a second).

        Of those that it has not been given yet nothing is stored: their clients send them again, with `retry`. So after a
        long stall no thousands of old sends come first, each looked up because it is late (`LATE_MS`).
        """
        before = self._monotonic_ms() - ANSWER_MS
        if self._open.records and self._open.since < before:
            self._full.append(self._open)
            self._open = _Batch()
        for batch in (self._flying, *self._full):
            if batch is None or batch.since >= before:
                continue
            late = batch.take_sends()
            if batch is not self._flying:
                self._pending_bytes -= batch.drop_sends()
            if late and self.gateway is not None:
                self.gateway.refuse(late, _TOO_SLOW)
        self._full = deque(batch for batch in self._full if batch.records)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._open.records and not self._full:
                    self._idle.set()
                    self._wake = loop.create_future()
                    await self._wake
                for _ in range(GATHER_TURNS if not self._full else 0):
                    await asyncio.sleep(0)
                if self._open.records or self._full:  # else all of it was given up meanwhile
                    await self._commit()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a failed fsync, a broken fold: nobody goes on after that
            self._fatal(error)

    async def _commit(self) -> None:
        batch = self._flying = self._take()
        log_ms = max(self._now_ms(), self.last_log_ms)
        counters = self._counters
        began = time.perf_counter()
        try:
            entry = await self._journal.append(batch.records, log_ms)
        except Unavailable:
            counters.journal_failures += 1
            self.refusing = True
            self._flying = None
            self._pending_bytes -= batch.weight
            self._refuse(batch)
            return
        self.last_log_ms = log_ms
        self.refusing = False
        counters.journal_append_seconds.observe(time.perf_counter() - began)
        counters.batches += 1
        counters.batch_records += len(batch.records)
        outcomes = self.fold(entry)
        counters.messages_accepted += len(self._sequencer.changes.messages)
        self._flying = None
        self._pending_bytes -= batch.weight
        for place, future in batch.commands:
            if not future.done():
                future.set_result(outcomes[place])
        if self.gateway is not None:
            self.gateway.tell(zip(batch.sessions, batch.records, outcomes, strict=True), entry.first)
        sends = len(batch.records) - len(batch.commands)
        if sends:
            waited_ms = max(0, self._now_ms() - batch.records[0].at)
            counters.ack_seconds.observe(waited_ms / 1000, sends)

    def fold(self, entry: Entry) -> list[Outcome]:
        """Fold a durable entry and give the store its rows (also the replay at start-up)."""
        outcomes = self._sequencer.fold(entry.records, entry.first, entry.log_ms)
        self._store.apply(entry.last, self._sequencer.changes)
        return outcomes

    def _take(self) -> _Batch:
        """The batch whose turn it is."""
        if self._full:
            return self._full.popleft()
        batch, self._open = self._open, _Batch()
        return batch

    def _refuse(self, batch: _Batch) -> None:
        for _, future in batch.commands:
            if not future.done():
                future.set_exception(Refused(_NO_SPACE))
        sends = batch.take_sends()
        if sends and self.gateway is not None:
            self.gateway.refuse(sends, _NO_SPACE)
