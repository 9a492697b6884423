"""`make bench`: the standard loads of `hongyan bench`, each beside the bare relay, in turn, in one run.

    .venv/bin/python scripts/benchmark/standard.py [--seconds S] [--repeat N] [--only NAME] [--json FILE]

Prints a table in Markdown. Absolute figures say as much about the machine and its hour as about the server; the
ratios to `relay.py`, which keeps nothing, say what keeping costs. Exit code 1 where a promise did not hold. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hongyan.auth import TokenSigner
from hongyan.bench.plan import Plan
from hongyan.bench.result import Result, machine
from hongyan.bench.run import Run, RunFailed
from hongyan.bench.server import ServerProcess
from hongyan.config import Settings
from hongyan.datadir import read_secret

RELAY = Path(__file__).with_name("relay.py")


@dataclass(frozen=True)
class Load:
    """One row of the table."""

    name: str
    plan: Plan
    relay: bool = True
    repeat: int | None = None  # None: as often as asked


def loads(seconds: float) -> list[Load]:
    def plan(scenario: str, connections: int, **fields: float) -> Plan:
        whole = {"duration_s": seconds, "warmup_s": 1.0} | fields
        return Plan(scenario, "", connections, prefix="", seed=1, **whole)  # type: ignore[arg-type]

    return [
        Load("direct, 1,000 connections, 1 in flight", plan("direct", 1000)),
        Load("direct, 100 connections, 20 in flight", plan("direct", 100, in_flight=20)),
        Load("direct, 1,000 connections, 10,000 a second", plan("direct", 1000, rate=10_000)),
        Load("a group of 1,000, one message at a time", plan("group", 1000, members=1000)),
        Load("a group of 1,000, 20 messages at a time", plan("group", 1000, members=1000, in_flight=20)),
        Load("3,000 logins, 100 at a time", plan("connect", 3000, in_flight=100), relay=False, repeat=1),
        Load("10,000 idle connections", plan("idle", 10_000), relay=False, repeat=1),
        Load(
            "200 users, half away, 300 messages to each",
            plan("offline", 200, messages=300),
            relay=False,
            repeat=1,
        ),
    ]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(up: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            up()
            return
        time.sleep(0.05)
    sys.exit("benchmark: the server does not start; its output is above")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def hongyan(work: Path, workers: int) -> Iterator[tuple[int, int, bytes]]:
    """A server on a fresh directory: its port, its process, the secret that it takes tokens with."""
    port, http, data = free_port(), free_port(), Path(tempfile.mkdtemp(dir=work))
    command = [sys.executable, "-m", "hongyan", "serve", "--port", str(port), "--http-port", str(http)]
    command += ["--data-dir", str(data), "--rate-limit", "0", "--workers", str(workers)]
    # The load comes from two or three addresses; a limit an address is for many.
    env = {**os.environ, "HONGYAN_LOG_LEVEL": "warning", "HONGYAN_MAX_UNAUTHENTICATED_PER_ADDRESS": "10000"}
    process = subprocess.Popen(command, env=env)
    try:
        wait_for(
            lambda: urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz", timeout=1).close(), process
        )
        yield port, process.pid, read_secret(data)
    finally:
        stop(process)
        shutil.rmtree(data, ignore_errors=True)


@contextlib.contextmanager
def relay() -> Iterator[tuple[int, int, bytes]]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(RELAY), str(port)])
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close(), process)
        yield port, process.pid, secrets.token_bytes(32)
    finally:
        stop(process)


def measured(load: Load, where: tuple[int, int, bytes]) -> Result:
    port, pid, secret = where
    prefix = f"b{secrets.token_hex(3)}-"
    plan = replace(load.plan, url=f"ws://127.0.0.1:{port}/ws", prefix=prefix)
    signer = TokenSigner(Settings(), secret)
    tokens = [signer.sign(f"{prefix}{n}", 3600)[0] for n in range(plan.connections)]
    try:
        found = Run(plan, 1, tokens, ServerProcess(pid), lambda phase, second: None).run()
    except RunFailed as error:
        sys.exit(f"benchmark: {load.name}: {error}")
    if found.interrupted:
        sys.exit(130)
    return found


def median(results: list[Result]) -> dict[str, float]:
    return {
        name: statistics.median(found.figures[name] for found in results if name in found.figures)
        for name in results[0].figures
    }


def row(name: str, unit: str, ours: dict[str, float], bare: dict[str, float] | None) -> str:
    rate = f"{ours[f'{unit} a second']:,.0f}" if unit else ""
    push = "push" if "push p50 ms" in ours else "ack"
    latency = (
        " / ".join(f"{ours[f'{push} {p} ms']:.3g}" for p in ("p50", "p99", "p99.9"))
        if f"{push} p50 ms" in ours
        else ""
    )
    cpu = ours.get("server CPU µs each")
    each = f"{cpu:.1f} µs" if cpu is not None else ""
    reference = ""
    if bare is not None and cpu is not None:
        theirs = bare["server CPU µs each"]
        reference = f"{theirs:.1f} µs, {cpu / theirs:.2f} ×"
    memory = f"{ours['bytes a connection'] / 1000:.1f} KB" if "bytes a connection" in ours else ""
    return f"| {name} | {rate} | {latency} | {each} | {reference} | {memory} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3, help="measured seconds a run (default: 3)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, the median counts (default: 3)")
    parser.add_argument("--only", default="", help="only the loads whose name contains this")
    parser.add_argument("--json", type=Path, help="write every run here too")
    parser.add_argument("--dir", type=Path, help="where data directories go: the disk that is measured")
    parser.add_argument("--workers", type=int, default=1, help="of the server (default: 1)")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    where = machine()
    print(
        f"{where['cores']} cores, {where['processor']}, Linux {where['kernel']}, Python {where['python']}\n"
    )
    print("| load | a second | p50 / p99 / p99.9 ms | server CPU each | bare relay, ratio | a connection |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    kept: list[dict[str, object]] = []
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hongyan-bench-", dir=args.dir) as work:
        for load in loads(args.seconds):
            if args.only not in load.name:
                continue
            ours: list[Result] = []
            bare: list[Result] = []
            for _ in range(load.repeat or args.repeat):
                with hongyan(Path(work), args.workers) as server:
                    ours.append(measured(load, server))
                if load.relay:
                    with relay() as server:
                        bare.append(measured(load, server))
            broken += [f"{load.name}: {text}" for found in ours for text in found.failures]
            print(row(load.name, ours[0].unit, median(ours), median(bare) if bare else None), flush=True)
            kept.append(
                {"load": load.name, "hongyan": [r.figures for r in ours], "relay": [r.figures for r in bare]}
            )
    if args.json:
        args.json.write_text(json.dumps({"machine": where, "loads": kept}, indent=1) + "\n")
    if broken:
        sys.exit("benchmark: what was acknowledged did not come once and in order\n" + "\n".join(broken))


if __name__ == "__main__":
    main()
