"""The figures in the README: one server process and one lean client on one machine.

    .venv/bin/python scripts/benchmark/run.py --wsload PATH/wsload.c [--references DIR] [--json FILE]

Starts `hongyan serve` on a temporary data directory without a rate limit, drives it with wsload (a
one-thread epoll client in C, built here with cc), and reads the server's own CPU time from
/proc/PID/stat over the measured seconds. With --references it runs `prototype.py` (the same
pipeline, stripped) and `relay.py` (no durability) in turn with it, in the same run, so that the
ratios survive a slow or busy machine, where the absolute figures don't.

Nothing here asserts: it measures. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
DEFAULT_WSLOAD = HERE.parents[3] / "shared" / "tools" / "load" / "wsload.c"
TICKS = os.sysconf("SC_CLK_TCK")
TEXT = "TS:{ts} hello world, this is a typical chat message"
# A form feed separates frames in wsload's templates; every push is acknowledged, as a client must.
HONGYAN = [
    "-P", "/ws",
    "--login", '{"type":"login","data":{"token":"{tok}","device_id":"bench"}}',
    "--login-ok", '"type":"login"',
    "--send",
    '{"type":"send_message","data":{"to":"@u{to}","content_type":"text","content":"' + TEXT + '"},'
    '"message_id":"{id}"}',
    "--ack", '{"type":"ack"',
    "--push", '{"type":"message"',
    "--dack", '{"type":"ack","data":{"conversation":"{f1}","seq":{f2}}}',
    "--f1", '"conversation":"',
    "--f2", '"seq":',
]  # fmt: skip
REFERENCE = [
    "-P", "/",
    "--login", '{"type":"login","data":{"user":"u{i}"}}',
    "--login-ok", "login_ok",
    "--send",
    '{"type":"send_message","data":{"to":"u{to}","content":"' + TEXT + '","client_id":"{id}"},'
    '"timestamp":1640995200000,"message_id":""}',
    "--ack", '{"type":"ack"',
    "--push", '{"type":"message"',
    "--dack", '{"type":"ack","data":{"message_id":"{f1}"}}',
    "--f1", '"message_id":"',
]  # fmt: skip
SCENARIOS = {
    "one in flight on each of 1,000 connections": ["-n", "1000", "-w", "1"],
    "20 in flight on each of 100 connections": ["-n", "100", "-w", "20"],
    "10,000 a second over 1,000 connections": ["-n", "1000", "-r", "10000"],
}


@dataclass(slots=True)
class Target:
    """A running server: where it listens, its process, and wsload's templates for it."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    templates: list[str]
    samples: list[int] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until_up(process: subprocess.Popen[bytes], port: int, ready_url: str | None) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"benchmark: the server ended with status {process.returncode}; its output is above")
        with contextlib.suppress(OSError):
            if ready_url is not None:
                urllib.request.urlopen(ready_url, timeout=1).close()
                return
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    sys.exit(f"benchmark: nothing answers on port {port} after 30 s")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def hongyan(work: Path, users: int) -> Iterator[Target]:
    """The server, with a token for each of users u0 … in the file `tokens`."""
    data, port, http = work / "data", free_port(), free_port()
    command = [sys.executable, "-m", "hongyan", "serve", "--port", str(port), "--http-port", str(http)]
    command += ["--data-dir", str(data), "--rate-limit", "0"]
    process = subprocess.Popen(command, env={**os.environ, "HONGYAN_LOG_LEVEL": "warning"})
    try:
        wait_until_up(process, port, f"http://127.0.0.1:{http}/readyz")
        with (work / "tokens").open("wb") as out:
            for first in range(0, users, 5000):  # an argument list has a limit
                names = [f"u{i}" for i in range(first, min(users, first + 5000))]
                tokens = [sys.executable, "-m", "hongyan", "token", *names, "--data-dir", str(data)]
                subprocess.run(tokens, check=True, stdout=out)
        yield Target("hongyan", port, process, [*HONGYAN, "--tokens", str(work / "tokens")])
    finally:
        stop(process)


@contextlib.contextmanager
def reference(script: Path) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, str(script), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until_up(process, port, None)
        yield Target(script.stem, port, process, REFERENCE)
    finally:
        process.kill()  # the references know no shutdown
        process.wait()


def drive(wsload: Path, target: Target, flags: list[str], sample_every_s: float = 0) -> dict[str, Any]:
    """Run wsload; returns what it printed, with `cpu_us` a message and the server's RSS."""
    command = [str(wsload), "-p", str(target.port), *target.templates, *flags]
    cpu: dict[str, float] = {}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(sample_every_s):
            target.samples.append(target.rss_bytes())

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        assert client.stderr is not None
        assert client.stdout is not None
        for line in client.stderr:
            if line.startswith("MEASURE-"):
                cpu[line.strip()] = target.cpu_seconds()
                if sample_every_s and line.startswith("MEASURE-BEGIN"):
                    threading.Thread(target=sample, daemon=True).start()
                if line.startswith("MEASURE-END"):
                    over.set()
            elif not line.startswith("ready"):
                print(f"  wsload, {target.name}: {line.rstrip()}", file=sys.stderr)
        result: dict[str, Any] = json.loads(client.stdout.read())
    over.set()
    messages = result["acked_s"] * result["secs"]
    used = cpu["MEASURE-END"] - cpu["MEASURE-BEGIN"]
    result["cpu_us"] = round(1e6 * used / messages, 2) if messages else float("nan")
    result["cpu_percent"] = round(100 * used / result["secs"], 1)
    result["unanswered"] = result["sent"] - result["acked"]
    result["rss_mb"] = round(target.rss_bytes() / 2**20, 1)
    return result


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Field by field, of several runs; what must not happen at all is summed."""
    summed = ("unanswered", "errors", "closed")
    return {
        key: sum(r[key] for r in runs) if key in summed else statistics.median(r[key] for r in runs)
        for key in runs[0]
    }


def idle_memory(wsload: Path, target: Target, connections: int) -> dict[str, Any]:
    """Bytes a logged-in idle connection, its user's and device's state included.

    A first thousand connections come and go before, so that code and pools loaded once
    are not counted as connections. Each address has some 28,000 ports: two are used.
    """
    base = [str(wsload), "-p", str(target.port), *target.templates]
    without_send = base[: base.index("--send")] + base[base.index("--send") + 2 :]
    subprocess.run([*without_send, "-n", "1000"], check=True, capture_output=True)
    time.sleep(1)
    before = target.rss_bytes()
    half = connections // 2
    clients = []
    for number, address in enumerate(("127.0.0.2", "127.0.0.3")):
        flags = ["-n", str(half), "-S", address, "--base", str(1000 + number * half), "--hold", "600"]
        clients.append(
            subprocess.Popen(
                [*without_send, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
    ready = 0
    for client in clients:
        assert client.stderr is not None
        for line in client.stderr:
            if line.startswith("ready"):
                ready += int(line.split()[1])
                break
    time.sleep(3)  # what logging in made durable reaches the store
    after = target.rss_bytes()
    for client in clients:
        client.kill()
        client.wait()
    each = (after - before) / ready if ready else float("nan")
    return {"connections": ready, "before_mb": before / 2**20, "after_mb": after / 2**20, "bytes_each": each}


def flat_memory(wsload: Path, target: Target, minutes: float, rate: int) -> dict[str, Any]:
    """RSS at a steady rate: after the first quarter (caches fill), and at the end."""
    flags = ["-n", "200", "-r", str(rate), "-d", str(minutes * 60)]
    result = drive(wsload, target, flags, sample_every_s=1)
    points = target.samples
    quarter = points[len(points) // 4 :]
    slope = statistics.linear_regression(range(len(quarter)), quarter).slope * 60 / 2**20
    megabytes = [round(p / 2**20, 1) for p in points]
    return {
        "minutes": minutes,
        "rate": rate,
        "rss_mb_first": megabytes[0],
        "rss_mb_quarter": megabytes[len(points) // 4],
        "rss_mb_last": megabytes[-1],
        "rss_mb_highest": max(megabytes),
        "mb_a_minute_after_quarter": round(slope, 2),
        "rss_mb_each_minute": megabytes[::60],
        **{key: result[key] for key in ("cpu_us", "push_p99_ms", "sent", "unanswered", "errors", "closed")},
    }


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = ["| load | server | messages/s | CPU µs a message | push p50 / p99 ms | unanswered, errors |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for scenario, by_name in results.items():
        for name, r in by_name.items():
            ratio = ""
            if name == "hongyan" and "prototype" in by_name:
                ratio = f" ({r['cpu_us'] / by_name['prototype']['cpu_us']:.2f} × prototype)"
            rows.append(
                f"| {scenario} | {name} | {r['acked_s']:,.0f} | {r['cpu_us']:.1f}{ratio} "
                f"| {r['push_p50_ms']:.2f} / {r['push_p99_ms']:.2f} | {r['unanswered']}, {r['errors']} |"
            )
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wsload", type=Path, default=DEFAULT_WSLOAD, help="wsload.c (default: %(default)s)")
    parser.add_argument("--references", type=Path, help="folder of prototype.py and relay.py, run in turn")
    parser.add_argument("--seconds", type=float, default=5, help="measured seconds a run (default: 5)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, the median counts (default: 3)")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections to weigh, 0 for none")
    parser.add_argument(
        "--minutes", type=float, default=0, help="length of a flat-memory run (default: none)"
    )
    parser.add_argument("--flat-rate", type=int, default=5000, help="its messages a second (default: 5000)")
    parser.add_argument("--skip-load", action="store_true", help="only --idle and --minutes")
    parser.add_argument("--dir", type=Path, help="where data directories go: the disk that is measured")
    parser.add_argument("--json", type=Path, help="write every figure here too")
    return parser.parse_args()


def build(source: Path, work: Path) -> Path:
    if not source.is_file():
        sys.exit(f"benchmark: no load generator at {source}; name it: --wsload PATH/wsload.c")
    binary = work / "wsload"
    subprocess.run(["cc", "-O2", "-w", "-o", str(binary), str(source)], check=True)
    return binary


def main() -> None:
    args = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "seconds": args.seconds,
        "repeat": args.repeat,
    }
    scripts = [args.references / f"{name}.py" for name in ("prototype", "relay")] if args.references else []
    with contextlib.ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="hongyan-bench-", dir=args.dir))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        wsload = build(args.wsload, work)
        fresh = iter(range(1_000_000))

        def server(users: int) -> contextlib.AbstractContextManager[Target]:
            folder = work / str(next(fresh))
            folder.mkdir()
            return hongyan(folder, users)

        if not args.skip_load:
            starts: list[Callable[[], contextlib.AbstractContextManager[Target]]]
            starts = [partial(server, 1000), *(partial(reference, script) for script in scripts)]
            loads: dict[str, dict[str, dict[str, Any]]] = {}
            for scenario, flags in SCENARIOS.items():
                runs: dict[str, list[dict[str, Any]]] = {}
                for _ in range(args.repeat):
                    for start in starts:
                        with start() as target:
                            flags_now = [*flags, "-d", str(args.seconds)]
                            runs.setdefault(target.name, []).append(drive(wsload, target, flags_now))
                loads[scenario] = {name: median(several) for name, several in runs.items()}
                print(f"done: {scenario}", file=sys.stderr)
            found["loads"] = loads
            print(table(loads))
        if args.idle:
            with server(args.idle + 1000) as target:
                found["idle"] = idle = idle_memory(wsload, target, args.idle)
            print(f"\n{idle['connections']:,} idle connections: {idle['bytes_each'] / 1000:.1f} KB each")
        if args.minutes:
            with server(200) as target:
                found["flat"] = flat = flat_memory(wsload, target, args.minutes, args.flat_rate)
            print("\nmemory at a steady rate: " + ", ".join(f"{k} {v}" for k, v in flat.items()))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
