"""What a run came to, and how it compares with another. Written and read as JSON."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec

from hongyan import __version__
from hongyan.bench.meter import figures_ms, histogram, record
from hongyan.bench.plan import Plan

# What a scenario is about: the count that throughput and CPU are given for, and its name.
SUBJECTS = {
    "direct": ("acked", "messages"),
    "group": ("pushed", "deliveries"),
    "connect": ("logins", "logins"),
    "idle": ("", ""),
    "offline": ("synced", "messages"),
    "mixed": ("acked", "messages"),
}
_NOT_PROBLEMS = {
    "sent", "acked", "pushed", "logins", "synced", "reconnects", "presence pushes", "problems", "refused",
}  # fmt: skip
Summary = dict[str, dict[Any, int]]


class Result(msgspec.Struct):
    """Rates a second, latencies in ms, CPU in µs a piece of the scenario's `unit`, sizes in bytes."""

    scenario: str
    unit: str
    url: str
    version: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    seconds: float
    rate: float
    counts: dict[str, int]  # of the measured seconds
    ack_ms: dict[str, float]
    push_ms: dict[str, float]
    server: dict[str, float]  # cpu_us, cpu_percent, memory_mb, connection_bytes, as far as known
    own_cpu_percent: float  # of a core, all processes of the load generator
    series: list[dict[str, float]]  # a second each
    failures: list[str]
    interrupted: bool = False
    late: int = 0  # answered after the measured seconds: in the latencies, not in the rate

    @property
    def errors(self) -> dict[str, int]:
        """Refusals, lost connections and the like, by name."""
        return {name: count for name, count in self.counts.items() if name not in _NOT_PROBLEMS and count}

    @property
    def figures(self) -> dict[str, float]:
        """What is worth a comparison, by name."""
        found: dict[str, float] = {}
        if self.unit:
            found[f"{self.unit} a second"] = self.rate
        found |= {f"ack {name} ms": value for name, value in self.ack_ms.items()}
        found |= {f"push {name} ms": value for name, value in self.push_ms.items()}
        return found | {
            label: self.server[name] for name, label in _SERVER_LABELS.items() if name in self.server
        }


_SERVER_LABELS = {
    "cpu_us": "server CPU µs each",
    "cpu_percent": "server CPU % of a core",
    "memory_mb": "server memory MB",
    "connection_bytes": "bytes a connection",
}
_MORE_IS_BETTER = ("a second",)


def summed(summaries: list[Summary]) -> Summary:
    """Of the processes, in one second."""
    total: Summary = {"counts": {}, "ack_us": {}, "push_us": {}}
    for summary in summaries:
        for name, values in summary.items():
            into = total[name]
            for key, count in values.items():
                into[key] = into.get(key, 0) + count
    return total


def result(
    plan: Plan, seconds: list[Summary], elapsed_s: float, server: dict[str, float], own_cpu_s: float,
    failures: list[str], interrupted: bool, late: Summary | None = None,
) -> Result:  # fmt: skip
    """`seconds`: what was summed for each; `server`: cpu_s, memory_mb, connection_bytes, as far as known; `own_cpu_s`:
    of all processes of the load generator; `late`: what came after them, which counts for latency only."""
    whole = summed(seconds)
    late = late or summed([])
    latest = summed([whole, late])
    counted, unit = SUBJECTS[plan.scenario]
    pieces = whole["counts"].get(counted, 0)
    found = {name: round(value, 2) for name, value in server.items() if name != "cpu_s"}
    if "cpu_s" in server and elapsed_s:
        found["cpu_percent"] = round(100 * server["cpu_s"] / elapsed_s, 1)
        if pieces:
            found["cpu_us"] = round(1e6 * server["cpu_s"] / pieces, 2)
    return Result(
        scenario=plan.scenario,
        unit=unit,
        url=plan.url,
        version=__version__,
        machine=machine(),
        settings=settings(plan),
        seconds=round(elapsed_s, 2),
        rate=round(pieces / elapsed_s, 1) if elapsed_s else 0.0,
        counts=whole["counts"],
        ack_ms=latencies(latest["ack_us"]),
        push_ms=latencies(latest["push_us"]),
        server=found,
        own_cpu_percent=round(100 * own_cpu_s / elapsed_s, 1) if elapsed_s else 0.0,
        series=[_point(second, counted) for second in seconds],
        failures=failures,
        interrupted=interrupted,
        late=late["counts"].get("acked", 0),
    )


def latencies(values: dict[Any, int]) -> dict[str, float]:
    of = histogram()
    record(of, values)
    return figures_ms(of)


def _point(second: Summary, counted: str) -> dict[str, float]:
    found: dict[str, float] = {"rate": second["counts"].get(counted, 0)}
    for name in ("ack", "push"):
        for key, value in latencies(second[f"{name}_us"]).items():
            found[f"{name}_{key}"] = value
    return found


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "processor": _processor(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def settings(plan: Plan) -> dict[str, Any]:
    names = (
        "connections",
        "duration_s",
        "warmup_s",
        "in_flight",
        "rate",
        "members",
        "messages",
        "size",
        "seed",
    )
    return {name: getattr(plan, name) for name in (*names, "processes")}


def load(path: Path) -> Result:
    """Raises OSError, ValueError (not a result)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no result of hongyan bench: {error}") from None


def save(of: Result, path: Path) -> None:
    """Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(of), indent=1) + b"\n")


def compared(old: Result, new: Result) -> list[tuple[str, float, float, float, bool]]:
    """(name, old, new, new/old, whether it got worse by a tenth or more) of each figure that both have."""
    before, rows = old.figures, []
    for name, value in new.figures.items():
        if before.get(name):
            ratio = value / before[name]
            worse = ratio < 0.9 if name.endswith(_MORE_IS_BETTER) else ratio > 1.1
            rows.append((name, before[name], value, ratio, worse))
    return rows
