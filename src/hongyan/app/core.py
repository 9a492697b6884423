"""The owner of the data directory: journal, store, engine and HTTP. In one process with the gateway or without."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import structlog

from hongyan.address import in_url
from hongyan.auth import TokenSigner
from hongyan.config import Settings
from hongyan.datadir import ClockMark, DataDirectory
from hongyan.descriptors import Share
from hongyan.engine.engine import Engine
from hongyan.errors import DataDirectoryError
from hongyan.http.server import HttpServer
from hongyan.ids import Snowflake, time_ms
from hongyan.journal.sqlite import SqliteJournal
from hongyan.metrics import Counters, exposition
from hongyan.reserve import Reserve
from hongyan.stopping import Stop
from hongyan.store.rocks import RocksStore

EXIT_STORAGE = 74  # EX_IOERR of sysexits.h: storage failed under way; nobody goes on after that

log = structlog.get_logger("hongyan")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Core:
    """`open` in a process that is to own the directory. `ready` opens HTTP's accounts."""

    def __init__(
        self, engine: Engine, secret: bytes, snowflake: Snowflake, counters: Counters, http_port: int
    ) -> None:
        self.engine = engine
        self.secret = secret
        self.snowflake = snowflake
        self.counters = counters
        self.http_port = http_port

    @classmethod
    async def open(
        cls, stack: AsyncExitStack, settings: Settings, room: Share, stop: asyncio.Event, stopping: Stop,
        ready: Callable[[], bool], sequences: range,
        total: Callable[[Counters], Awaitable[Counters]] | None = None,
    ) -> Core | None:  # fmt: skip
        """Recovered; `engine.start` is the caller's. What is opened is closed by `stack`. `total`: the counters of all
        processes, from this one's. None: told to stop meanwhile. Raises DataDirectoryError, OSError."""
        loop = asyncio.get_running_loop()
        directory = DataDirectory.open(settings.data_dir)
        stack.callback(directory.close)
        if directory.store_path.exists() and not directory.journal_path.exists():
            raise DataDirectoryError(
                f"{settings.data_dir} has a store but no journal: a part of it was lost; restore both from one backup"
            )
        for name in directory.open_to_others():
            log.warning("others can read this: chmod -R go-rwx the data directory",
                        path=str(settings.data_dir / name))  # fmt: skip
        secret = directory.secret()
        counters = Counters(max_connections=room.connections)
        journal = SqliteJournal.open(directory.journal_path)
        stack.push_async_callback(journal.close)
        store = RocksStore.open(
            directory.store_path, journal.identity, cache_conversations=settings.cache_conversations,
            tail_messages=settings.tail_messages, tail_bytes=settings.tail_bytes,
            flush_interval_ms=settings.store_flush_interval_ms, max_open_files=room.store_files, fatal=die,
        )  # fmt: skip
        stack.push_async_callback(lambda: store.close(patience_s=stopping.left(0.1)))
        mark = ClockMark(directory.mark_path)
        stack.callback(mark.close)
        snowflake = Snowflake(settings.node_id, now_ms, floor_ms=mark.load(), mark_ms=0, sequences=sequences)
        engine = Engine(
            settings,
            journal,
            store,
            snowflake,
            counters,
            now_ms=now_ms,
            monotonic_ms=monotonic_ms,
            fatal=die,
        )
        # health and metrics answer from here on, also while a long journal is replayed
        http = HttpServer(
            settings, engine, TokenSigner(settings, secret), counters, lambda: ready() and not stop.is_set(),
            lambda: engine.writable, _metrics_text(counters, engine, journal, store, total), max_connections=room.http_connections,
        )  # fmt: skip
        await http.start()
        stack.push_async_callback(lambda: http.stop(stopping.left(0.1)))
        began = time.monotonic()
        recovery = loop.create_task(engine.recover())
        stopped = loop.create_task(stop.wait())
        await asyncio.wait({recovery, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            recovery.cancel()
            await asyncio.wait({recovery})
            log.info("stopped while replaying the journal; the next start goes on")
            return None
        found = recovery.result()
        snowflake.raise_floor(time_ms(found.highest_id) + 1 if found.highest_id else 0)
        reserve = Reserve(snowflake, mark.save, die)
        await reserve.renew()
        await engine.open_window()
        reserving = loop.create_task(reserve.run(), name="reserve")
        stack.callback(reserving.cancel)
        if found.replayed:
            log.info(
                "replayed the journal", records=found.replayed, seconds=round(time.monotonic() - began, 3)
            )
        return cls(engine, secret, snowflake, counters, http.port)


def die(error: BaseException) -> None:
    """Storage or the fold failed: end at once, so that nothing more is acknowledged."""
    log.critical("storage failed, the server ends", error=repr(error))
    sys.stderr.flush()
    os._exit(EXIT_STORAGE)


def calm_collector() -> None:
    """The garbage collector walks every connection's objects at each full collection, which was the
    latency tail (p99 58 → 2 ms at 10,000 messages a second in the prototype): what exists at the start
    is frozen, and young collections come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 100)  # 50,000 at a time held the loop for 6 to 13 ms, once a second
    sys.setswitchinterval(0.001)  # the journal's thread waits this long at most to hand a batch back


def _metrics_text(
    counters: Counters, engine: Engine, journal: SqliteJournal, store: RocksStore,
    total: Callable[[Counters], Awaitable[Counters]] | None,
) -> Callable[[], Awaitable[bytes]]:  # fmt: skip
    async def text() -> bytes:
        counters.journal_first_offset = journal.first
        counters.journal_last_offset = journal.last
        counters.store_offset = store.offset
        counters.store_pending_rows = store.pending_rows
        counters.store_pending_bytes = store.pending_bytes
        counters.store_flushes = store.flushes
        counters.store_flushed_rows = store.flushed_rows
        counters.store_flush_failures = store.flush_failures
        counters.admitted_bytes = engine.pending_bytes
        counters.cursors_held = engine.cursors_held
        return exposition(counters if total is None else await total(counters))

    return text


def print_hints(settings: Settings, port: int) -> None:
    """For people: what to type next. Nothing where nobody reads it."""
    if not (sys.stderr.isatty() or os.environ.get("HONGYAN_HINTS")):
        return
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    where = "" if (host, port) == ("127.0.0.1", 8080) else f" --url ws://{in_url(host)}:{port}/ws"
    data = "" if str(settings.data_dir) == "hongyan-data" else f" --data-dir {settings.data_dir}"
    command = os.environ.get("HONGYAN_COMMAND", "hongyan")
    print(
        f"\nHongyan is ready. Say something from two other terminals:\n\n"
        f"  {command} chat --user alice --to @bob{where}{data}\n"
        f"  {command} chat --user bob --to @alice{where}{data}\n\nCtrl-C here stops the server.\n",
        file=sys.stderr,
    )
