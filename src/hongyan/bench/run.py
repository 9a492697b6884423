"""The parent of a run: starts the processes, keeps them in step, and puts together what they report."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from hongyan.bench import worker
from hongyan.bench.ledger import MOST
from hongyan.bench.plan import Plan
from hongyan.bench.result import Result, Summary, result, summed
from hongyan.bench.server import ServerProcess

HEAD_START_NS = 100_000_000  # so that all processes begin at one moment
_STOP_S = 5.0


class RunFailed(Exception):
    """The load could not be run; the text says why."""


class Run:
    """`progress(phase, second)` is called with each phase and each measured second."""

    def __init__(
        self, plan: Plan, processes: int, tokens: list[str], server: ServerProcess | None,
        progress: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._parts = plan.parts(processes, tokens)
        self._plan = replace(plan, processes=processes)
        self._server = server
        self._progress = progress
        self._pipes: list[Connection] = []  # what the children say
        self._tells: list[Connection] = []  # what they are told
        self._children: list[BaseProcess] = []
        self._arrived: list[tuple[str, tuple[int, int]]] = []
        self._seconds: dict[int, list[Summary]] = {}
        self._late: list[Summary] = []
        self._results: list[dict[str, Any]] = []
        self._began = self._ended = 0
        self._begins = self._ends = 0
        self._cpu_s = self._own_cpu_s = 0.0
        self._memory = [0, 0]
        self._missing = 0

    def run(self) -> Result:
        """Raises RunFailed. After Ctrl-C the result says so and holds what there is."""
        interrupted = False
        context = multiprocessing.get_context("spawn")
        if self._server is not None:
            self._memory = [self._server.memory_bytes()] * 2
        try:
            for part in self._parts:
                # One for each direction: the child's event loop makes non-blocking what it reads from, and a long
                # report must not be cut off.
                said, says = context.Pipe(duplex=False)
                told, tells = context.Pipe(duplex=False)
                child = context.Process(target=worker.main, args=(part, told, says), daemon=True)
                child.start()
                says.close()
                told.close()
                self._pipes.append(said)
                self._tells.append(tells)
                self._children.append(child)
            self._serve()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._stop()
        return self._result(interrupted)

    def _serve(self) -> None:
        waiting = list(self._pipes)
        while waiting:
            for pipe in wait(waiting):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    raise RunFailed(f"a process of the load generator died ({self._codes()})") from None
                if self._take(message):
                    waiting.remove(pipe)

    def _take(self, message: tuple[Any, ...]) -> bool:
        """True: the last of this process."""
        match message:
            case ("phase", name, counted):
                self._arrive(name, counted)
            case ("measure", "begin"):
                self._begins += 1
                if self._begins == 1:
                    self._began = self._ended = time.monotonic_ns()
                    self._cpu_s = -self._cpu()
                    if self._server is not None:
                        self._memory[1] = self._server.memory_bytes()
            case ("measure", "end", cpu_s):
                self._own_cpu_s += cpu_s
                self._ends += 1
                if self._ends == len(self._parts):
                    self._ended = time.monotonic_ns()
                    self._cpu_s += self._cpu()
            case ("second", number, summary):
                self._seconds.setdefault(number, []).append(summary)
                self._ended = time.monotonic_ns() if not self._ends else self._ended
                self._progress("measuring", number + 1)
            case ("late", summary):
                self._late.append(summary)
            case ("done", found):
                self._results.append(found)
                return True
            case ("failed", text):
                raise RunFailed(text)
        return False

    def _arrive(self, name: str, counted: tuple[int, int]) -> None:
        self._arrived.append((name, counted))
        if len(self._arrived) < len(self._parts):
            return
        arrived, self._arrived = self._arrived, []
        answer = time.monotonic_ns() + HEAD_START_NS
        if name == "counted":
            answer = self._missing = sum(owed - got for _, (owed, got) in arrived)
        self._progress(name, 0)
        for pipe in self._tells:
            pipe.send(answer)

    def _codes(self) -> str:
        for child in self._children:
            child.join(1)
        return ", ".join(
            f"exit code {child.exitcode}" for child in self._children if child.exitcode is not None
        )

    def _cpu(self) -> float:
        return self._server.cpu_seconds() if self._server is not None else 0.0

    def _stop(self) -> None:
        for child in self._children:
            child.join(_STOP_S if len(self._results) == len(self._parts) else 0)
            if child.is_alive():
                child.kill()
                child.join()
        for pipe in (*self._pipes, *self._tells):
            pipe.close()

    def _result(self, interrupted: bool) -> Result:
        plan = self._plan
        server: dict[str, float] = {}
        elapsed_s = (self._ended - self._began) / 1e9
        if self._server is not None and self._began:
            if self._ends == len(self._parts):
                server["cpu_s"] = self._cpu_s
            server["memory_mb"] = self._memory[1] / 2**20
            grown = self._memory[1] - self._memory[0]
            if plan.scenario == "idle" and grown > 0:  # else it had room left of an earlier load
                server["connection_bytes"] = grown / plan.connections
        seconds = [summed(self._seconds[number]) for number in sorted(self._seconds)]
        failures = [text for found in self._results for text in found["problems"]]
        if not interrupted:
            failures = [*self._unheard(), *failures]
        return result(
            plan,
            seconds,
            elapsed_s,
            server,
            self._own_cpu_s,
            failures[:MOST],
            interrupted,
            summed(self._late),
        )

    def _unheard(self) -> list[str]:
        """Conversations of which not everybody has heard all."""
        heard: dict[str, tuple[int, int, int]] = {}
        for found in self._results:
            for name, (low, high, number) in found.get("heard", {}).items():
                before = heard.get(name, (low, high, 0))
                heard[name] = min(low, before[0]), max(high, before[1]), number + before[2]
        problems = []
        if self._missing:
            what = "are missing" if self._missing > 0 else "came that nobody was told of"
            problems.append(f"{abs(self._missing)} pushes of acknowledged messages {what}")
        # Users of our own making have no past: each seq is one message of this run.
        if heard and not self._plan.users:
            stored = sum(high for _, high, _ in heard.values())
            acked = sum(found.get("acked", 0) for found in self._results)
            unanswered = sum(found.get("unanswered", 0) for found in self._results)
            if not acked <= stored <= acked + unanswered:
                problems.append(
                    f"{stored:,} messages were stored, and {acked:,} were acknowledged: some twice, or never"
                )
        for name, (low, high, number) in heard.items():
            if low != high:
                problems.append(f"of {name} one has heard up to seq {low}, another up to {high}")
            elif number == 1 and name[0] != "#":
                problems.append(f"of {name} one has heard up to seq {high}, the other nothing")
        return problems
