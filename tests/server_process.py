"""A server as a real process, seen only from outside: flags, a TOML file, signals, HTTP and WebSocket."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import Any

import jwt

SOURCES = Path(__file__).resolve().parent.parent / "src"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def toml(settings: dict[str, Any]) -> str:
    def value(item: Any) -> str:
        if isinstance(item, bool):
            return "true" if item else "false"
        if isinstance(item, list):
            return "[" + ", ".join(value(part) for part in item) + "]"
        return str(item) if isinstance(item, int | float) else f'"{item}"'

    return "".join(f"{name} = {value(item)}\n" for name, item in settings.items())


def alive(group: int) -> bool:
    """Whether a process of the group runs (one that has ended and waits to be reaped does not)."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = entry.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                return True
    return False


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("the process is gone")


def ask(url: str, body: bytes | None = None) -> tuple[int, Message, bytes]:
    """Status, headers and body of one HTTP answer, whatever its status. Raises OSError where there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers, refused.read()


class ServerProcess:
    """`hongyan serve` on a directory. `start` and `kill` may be called again and again."""

    def __init__(
        self, root: Path, data_dir: Path | None = None, env: dict[str, str] | None = None,
        open_files: int | tuple[int, int] | None = None, **settings: Any,
    ):  # fmt: skip
        """`open_files`: the process's limit, or (soft, hard)."""
        self.root = root
        self.data_dir = data_dir or root / "data"
        self.env = env or {}
        self.open_files = (open_files, open_files) if isinstance(open_files, int) else open_files
        self.settings: dict[str, Any] = settings
        self.port = free_port()
        self.http_port = free_port()
        self.log_path = root / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting until it is ready."""
        config = self.root / "hongyan.toml"
        config.write_text(toml(self.settings))
        command = [sys.executable, "-m", "hongyan", "serve", "--config", str(config)]
        command += ["--port", str(self.port), "--http-port", str(self.http_port)]
        command += ["--data-dir", str(self.data_dir)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HONGYAN_")}
        environment |= {"PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1"} | self.env
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.root, preexec_fn=self._limit,
                start_new_session=True,
            )  # fmt: skip
        return self.process

    def _limit(self) -> None:
        if self.open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, self.open_files)

    def start(self, timeout: float = 30) -> ServerProcess:
        process = self.spawn()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}:\n{self.log[-4000:]}")
            if self.ready():
                return self
            time.sleep(0.02)  # there is no event to wait for in another process's start
        self.kill()
        raise AssertionError(f"not ready after {timeout} s:\n{self.log[-4000:]}")

    def ready(self) -> bool:
        try:
            return ask(f"{self.http}/readyz")[0] == 200
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL to all its processes, wait until they are gone. Fine when it never ran or has ended."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while alive(self.process.pid):  # orphans of it: nobody tells us of their end
            time.sleep(0.005)

    def processes(self) -> dict[str, int]:
        """Process ids by what a process is: "engine" (which owns the directory), "gateway-1", …"""
        assert self.process is not None
        pid = self.process.pid
        if self.settings.get("workers", 1) == 1:
            return {"engine": pid}
        found = {}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):  # it has just ended
                name = Path(f"/proc/{child}/comm").read_text().strip().removeprefix("hongyan-")
                found[name.replace("gw", "gateway")] = int(child)
        return found

    def terminate(self, timeout: float = 30) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def restart(self) -> ServerProcess:
        self.kill()
        return self.start()

    def token(self, user: str, ttl_s: int = 3600, **claims: Any) -> str:
        """Signed with the directory's own secret, as `hongyan token` does."""
        body = {"sub": user, "exp": int(time.time()) + ttl_s} | claims
        return jwt.encode(body, self.secret, algorithm="HS256")

    @property
    def secret(self) -> bytes:
        return (self.data_dir / "secret").read_bytes()

    def memory_kib(self) -> int:
        """Resident memory now, of all its processes."""
        return sum(map(resident_kib, self.processes().values()))
