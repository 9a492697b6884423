"""One process of the load generator: its connections, and the beat of the seconds that it reports."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from picows import ws_connect

from hongyan.bench.client import Client, Refused, now_ns
from hongyan.bench.ledger import MOST
from hongyan.bench.meter import Interval
from hongyan.bench.plan import Plan

HEARTBEAT_S = 20.0
AT_A_TIME = 100  # connections that are being made
SETTLE_S = 30.0  # for what is under way at the end
ABSENT_S, AWAY_S = 3.0, 60.0  # a server that was never there is waited for, and one that may come back


class Failed(Exception):
    """The run cannot go on; the text says why."""


class Worker:
    """The parent is told ("phase", name), ("second", number, summary), and at last ("done", result)."""

    def __init__(self, plan: Plan, told: Connection, pipe: Connection) -> None:
        self.plan = plan
        self.first = plan.first
        self.random = random.Random(plan.seed * 1000 + plan.process)
        self.filler = b"".join(b"hello " for _ in range(plan.size // 6 + 1))[: max(plan.size, 1)].strip()
        self.interval = Interval()
        self.clients = [Client(self, plan.first + n) for n in range(plan.count)]
        self.problems: list[str] = []
        self.waiting = 0  # sends of all its clients that have no answer yet
        self.totals: dict[str, int] = {}
        self._told = told
        self._pipe = pipe
        self._touched: list[Client] = []
        self._go: asyncio.Queue[Any] = asyncio.Queue()
        self._second = 0
        self._reached = False

    # what clients use

    def touch(self, client: Client) -> None:
        """It has something to write: all of them write once the loop has read what there is."""
        if not self._touched:
            asyncio.get_running_loop().call_soon(self._flush)
        self._touched.append(client)

    def _flush(self) -> None:
        touched, self._touched = self._touched, []
        for client in touched:
            client.flush()

    def problem(self, text: str) -> None:
        """Something that must not be: the run fails."""
        self.interval.counts["problems"] += 1
        if len(self.problems) < MOST:
            self.problems.append(text)

    # steps of a scenario

    async def together(self, phase: str, counted: tuple[int, int] = (0, 0)) -> int:
        """Wait until every process has come so far. Returns the moment (monotonic ns) from which it goes on; after
        counting pushes (owed, got): how many are missing in all."""
        self._pipe.send(("phase", phase, counted))
        return int(await self._go.get())

    async def connect(self, client: Client, timed: bool = False) -> None:
        """Connect and log in. `timed`: how long that took is recorded as an acknowledgement's latency."""
        local: dict[str, Any] = {"local_addr": (self.plan.source, 0)} if self.plan.source else {}
        began = now_ns()
        while True:
            try:
                await ws_connect(
                    lambda: client, self.plan.url, use_aiofastnet=False, read_buffer_init_size=4096,
                    websocket_handshake_timeout=60, max_frame_size=1 << 20, **local,
                )  # fmt: skip
                await client.log_in()
                break
            except Refused as refused:
                raise Failed(f"{client.user} cannot log in: {refused}") from None
            except (OSError, TimeoutError, ConnectionError) as error:
                self.interval.counts["failed connections"] += 1
                if now_ns() - began > (AWAY_S if self._reached else ABSENT_S) * 1e9:
                    raise Failed(f"cannot connect to {self.plan.url}: {error}") from None
                await asyncio.sleep(0.5 + self.random.random())
            except Exception as error:  # picows has an exception of its own for a handshake that is refused
                if "503" not in str(error) and "WSUpgrade" not in type(error).__name__ + str(error):
                    raise
                self.interval.counts["refused handshakes"] += 1
                if now_ns() - began > 120e9:
                    raise Failed(f"{self.plan.url} refuses the handshake: {error}") from None
                await asyncio.sleep(1 + 4 * self.random.random())
        self._reached = True
        self.interval.counts["logins"] += 1
        if timed:
            self.interval.ack_us.append((now_ns() - began) // 1000)
        await client.look_back()

    async def each(
        self, clients: list[Client], work: Callable[[Client], Awaitable[None]], at_a_time: int
    ) -> None:
        """`work` for each of them, so many at a time."""
        waiting = iter(clients)

        async def one_after_the_other() -> None:
            for client in waiting:
                await work(client)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_a_time, len(clients))):
                group.create_task(one_after_the_other())

    async def connect_all(self) -> None:
        # From the beginning: a hundred thousand take longer to come than one may be silent.
        self._beating = asyncio.get_running_loop().create_task(self._beat(), name="heartbeats")
        await self.each(self.clients, self.connect, AT_A_TIME)

    async def _beat(self) -> None:
        """Each connection in its own moment of the interval."""
        part, due = 50, now_ns()
        while True:
            for n in range(part):
                due += int(HEARTBEAT_S / part * 1e9)  # (sleeps of a busy loop are long, and would add up)
                await asyncio.sleep(max(0.0, (due - now_ns()) / 1e9))
                for client in self.clients[n::part]:
                    if client.open:
                        client.beat()

    async def measure(self, started_ns: int) -> None:
        """Warm up, then report second by second until the duration has passed."""
        await asyncio.sleep(max(0.0, (started_ns - now_ns()) / 1e9) + self.plan.warmup_s)
        self._close_interval(report=False)
        self._pipe.send(("measure", "begin"))
        cpu_s = time.process_time()
        begin = now_ns()
        seconds = max(1, round(self.plan.duration_s))
        for second in range(1, seconds + 1):
            due = begin + self.plan.duration_s * 1e9 * second / seconds
            await asyncio.sleep(max(0.0, (due - now_ns()) / 1e9))
            self._close_interval(report=True)
        self._pipe.send(("measure", "end", time.process_time() - cpu_s))

    async def measure_while(self, work: asyncio.Task[None]) -> None:
        """Report second by second until `work` is done. Raises what it raises."""
        self._close_interval(report=False)
        self._pipe.send(("measure", "begin"))
        cpu_s = time.process_time()
        while not work.done():
            await asyncio.wait([work], timeout=1.0)
            self._close_interval(report=True)
        self._pipe.send(("measure", "end", time.process_time() - cpu_s))
        work.result()

    async def settle(self, done: Callable[[], bool]) -> bool:
        """Wait until nothing is under way any more. False: it did not come to that."""
        end = now_ns() + int(SETTLE_S * 1e9)
        while not done() and now_ns() < end:
            await asyncio.sleep(0.05)
        return done()

    def _close_interval(self, report: bool) -> Interval:
        closed, self.interval = self.interval, Interval()
        for name, count in closed.counts.items():
            self.totals[name] = self.totals.get(name, 0) + count
        if report:
            self._pipe.send(("second", self._second, closed.summary()))
            self._second += 1
        return closed

    def report_late(self) -> None:
        """What came after the measured seconds, of messages that were due in them: leaving it out would flatter a
        server that stood still at the end."""
        closed = self._close_interval(report=False)
        self._pipe.send(("late", closed.summary()))

    def heard(self, _: object = None) -> None:
        """The parent says go, or has gone."""
        try:
            while self._told.poll():
                self._go.put_nowait(self._told.recv())
        except (EOFError, OSError):
            raise SystemExit(1) from None

    async def run(self, scenario: Callable[[Worker], Awaitable[dict[str, Any]]]) -> None:
        asyncio.get_running_loop().add_reader(self._told.fileno(), self.heard)
        gc.freeze()
        gc.set_threshold(50_000, 50, 50)
        result = await scenario(self)
        self._close_interval(report=False)
        breaches = [str(breach) for client in self.clients for breach in client.ledger.breaches]
        broken = sum(client.ledger.broken for client in self.clients)
        self._pipe.send(
            (
                "done",
                {
                    "totals": self.totals,
                    "problems": self.problems + breaches[:MOST],
                    "broken": broken,
                    **result,
                },
            )
        )


def main(plan: Plan, told: Connection, pipe: Connection) -> None:
    """Of the child process."""
    from hongyan.bench.scenarios import SCENARIOS

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(Worker(plan, told, pipe).run(SCENARIOS[plan.scenario]))
    except BaseExceptionGroup as group:
        _fail(pipe, group.exceptions[0])
    except (Exception, SystemExit) as error:
        _fail(pipe, error)


def _fail(pipe: Connection, error: BaseException) -> None:
    text = str(error) if isinstance(error, Failed) else "".join(traceback.format_exception(error))
    try:
        pipe.send(("failed", text))
    except OSError:
        sys.stderr.write(text)
