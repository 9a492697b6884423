"""`make soak`: an hour of a chat application's traffic, in which nothing may be lost and nothing may grow.

    .venv/bin/python scripts/test/soak.py [--minutes M] [--rate N] [--connections N]

Runs `hongyan bench mixed` (direct chats, groups, presence, people who come and go) against a server of its own and
looks at the server's memory, open files and latency minute by minute. Exit code 1 where a message was lost, doubled or
out of order, or where memory, descriptors or latency of the last third lie a quarter or more above those of the middle
one. Linux.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmark"))

from standard import Load, hongyan, measured

from hongyan.bench.plan import Plan
from hongyan.bench.result import Result
from hongyan.bench.server import ServerProcess
from hongyan.bench.table import table

GROWTH = 1.25
EVERY_S = 10


class Watch:
    """Memory (MB) and open files of the server while the load runs, in a process of its own: the parent of a run is
    busy with what its children report."""

    def __init__(self, pid: int, to: Path) -> None:
        self._to = to
        self._process = subprocess.Popen([sys.executable, __file__, "--watch", str(pid), str(to)])

    def stop(self) -> list[tuple[float, float]]:
        self._process.kill()
        self._process.wait()
        return [(float(a), float(b)) for a, b in (line.split() for line in self._to.read_text().splitlines())]


def watch(pid: int, to: Path) -> None:
    server = ServerProcess(pid)
    with to.open("w") as out:
        while True:
            out.write(f"{server.memory_bytes() / 2**20:.1f} {server.open_files()}\n")
            out.flush()
            time.sleep(EVERY_S)


def thirds(values: list[float]) -> tuple[float, float]:
    """The medians of the middle third and of the last."""
    third = max(1, len(values) // 3)
    return statistics.median(values[third : 2 * third] or values), statistics.median(values[-third:])


def verdict(found: Result, samples: list[tuple[float, float]]) -> list[str]:
    """What grew, and what was broken."""
    wrong = list(found.failures)
    rows = {
        "memory MB": [memory for memory, _ in samples],
        "open files": [files for _, files in samples],
        "ack p99 ms": [point.get("ack_p99", 0.0) for point in found.series],
    }
    for name, values in rows.items():
        middle, last = thirds(values)
        print(f"  {name:16}{middle:.1f} in the middle third, {last:.1f} in the last")
        if last > GROWTH * middle:
            wrong.append(f"{name} grew from {middle:.1f} to {last:.1f}")
    return wrong


def main() -> None:
    if sys.argv[1:2] == ["--watch"]:
        watch(int(sys.argv[2]), Path(sys.argv[3]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="default: 60")
    parser.add_argument("--rate", type=float, default=5000, help="messages a second (default: 5000)")
    parser.add_argument("--connections", type=int, default=500, help="default: 500")
    parser.add_argument("--workers", type=int, default=1, help="of the server (default: 1)")
    args = parser.parse_args()
    plan = Plan(
        "mixed",
        "",
        args.connections,
        duration_s=60 * args.minutes,
        warmup_s=5,
        prefix="",
        seed=1,
        rate=args.rate,
    )
    with tempfile.TemporaryDirectory(prefix="hongyan-soak-") as folder:
        work = Path(folder)
        with hongyan(work, args.workers) as server:
            watching = Watch(server[1], work / "samples")
            try:
                found = measured(Load("soak", plan), server)
            finally:
                samples = watching.stop()
    print(table(found))
    minutes = [f"{memory:.0f}" for memory, _ in samples[:: 60 // EVERY_S]]
    print(f"  {'memory MB':16}each minute: {', '.join(minutes)}")
    wrong = verdict(found, samples)
    if wrong:
        sys.exit("soak: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
