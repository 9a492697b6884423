"""Put the parts together. The only file that names concrete adapters."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog
import uvloop

from hongyan import __version__
from hongyan.address import in_url
from hongyan.auth import TokenSigner, TokenVerifier
from hongyan.config import Settings
from hongyan.datadir import ClockMark, DataDirectory
from hongyan.descriptors import Share, raise_limit, share
from hongyan.engine.engine import Engine
from hongyan.errors import DataDirectoryError
from hongyan.gateway.server import Gateway
from hongyan.http.server import HttpServer
from hongyan.ids import Snowflake, time_ms
from hongyan.journal.sqlite import SqliteJournal
from hongyan.log import configure
from hongyan.metrics import Counters, exposition
from hongyan.reserve import Reserve
from hongyan.stopping import Stop
from hongyan.store.rocks import RocksStore

log = structlog.get_logger("hongyan")

EXIT_FAILED = 1  # could not start: directory in use or damaged, port taken
EXIT_STORAGE = 74  # EX_IOERR of sysexits.h: storage failed under way; nobody goes on after that


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process's exit code. Raises ConfigError."""
    configure(settings)
    os.umask(0o077)  # SQLite and RocksDB make their files as the process does: messages are nobody else's
    room = share(raise_limit(), settings.max_connections)
    try:
        return uvloop.run(_serve(settings, room))
    except DataDirectoryError as error:
        print(f"hongyan: {error}", file=sys.stderr)
    except OSError as error:
        print(f"hongyan: cannot start: {error}", file=sys.stderr)
    return EXIT_FAILED


def _die(error: BaseException) -> None:
    """Storage or the fold failed: end at once, so that nothing more is acknowledged."""
    log.critical("storage failed, the server ends", error=repr(error))
    sys.stderr.flush()
    os._exit(EXIT_STORAGE)


async def _serve(settings: Settings, room: Share) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    stopping = Stop(settings.shutdown_timeout_s, stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.on_signal, number)
    async with AsyncExitStack() as stack:
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
            flush_interval_ms=settings.store_flush_interval_ms, max_open_files=room.store_files, fatal=_die,
        )  # fmt: skip
        stack.push_async_callback(lambda: store.close(patience_s=stopping.left(0.1)))
        mark = ClockMark(directory.mark_path)
        stack.callback(mark.close)
        snowflake = Snowflake(settings.node_id, now_ms, floor_ms=mark.load(), mark_ms=0)
        engine = Engine(
            settings,
            journal,
            store,
            snowflake,
            counters,
            now_ms=now_ms,
            monotonic_ms=monotonic_ms,
            fatal=_die,
        )
        ready = False  # health and metrics answer from here on, also while a long journal is replayed
        http = HttpServer(
            settings, engine, TokenSigner(settings, secret), counters, lambda: ready and not stop.is_set(),
            lambda: engine.writable, _metrics_text(counters, engine, journal, store), max_connections=room.http_connections,
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
            return 0
        found = recovery.result()
        snowflake.raise_floor(time_ms(found.highest_id) + 1 if found.highest_id else 0)
        reserve = Reserve(snowflake, mark.save, _die)
        await reserve.renew()
        await engine.open_window()
        reserving = loop.create_task(reserve.run(), name="reserve")
        stack.callback(reserving.cancel)
        if found.replayed:
            log.info(
                "replayed the journal", records=found.replayed, seconds=round(time.monotonic() - began, 3)
            )
        gateway = Gateway(
            settings, engine, TokenVerifier(settings, secret), snowflake, counters, now_ms, time.monotonic,
            max_connections=room.connections,
        )  # fmt: skip
        engine.start(gateway)
        stack.push_async_callback(engine.close)
        await gateway.start()
        stack.push_async_callback(lambda: gateway.drain(stopping.left(0.6)))
        _calm_collector()
        ready = True
        log.info("listening", url=f"ws://{in_url(settings.host)}:{gateway.port}/ws", http_port=http.port,
                 data_dir=str(settings.data_dir), max_connections=room.connections,
                 version=__version__)  # fmt: skip
        if sys.stderr.isatty() or os.environ.get("HONGYAN_HINTS"):
            _print_hints(settings, gateway.port)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")
    return 0


def _calm_collector() -> None:
    """The garbage collector walks every connection's objects at each full collection, which was the
    latency tail (p99 58 → 2 ms at 10,000 messages a second in the prototype): what exists at the start
    is frozen, and young collections come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 100)  # 50,000 at a time held the loop for 6 to 13 ms, once a second
    sys.setswitchinterval(0.001)  # the journal's thread waits this long at most to hand a batch back


def _metrics_text(
    counters: Counters, engine: Engine, journal: SqliteJournal, store: RocksStore
) -> Callable[[], bytes]:
    def text() -> bytes:
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
        return exposition(counters)

    return text


def _print_hints(settings: Settings, port: int) -> None:
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
