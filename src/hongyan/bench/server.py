"""The server under load, where it runs on this machine: its processes' CPU time and memory, from /proc (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
ENGINE = "hongyan-engine"


class ServerProcess:
    """The process `pid` and all its descendants, those that have come since too."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError."""
        if not (PROC / str(pid)).exists():
            raise ProcessLookupError(f"there is no process {pid}")
        self.pid = pid

    def cpu_seconds(self) -> float:
        """User and system time so far. (Of one that has ended meanwhile it is missing.)"""
        return sum(_cpu(pid) for pid in self._pids())

    def memory_bytes(self) -> int:
        """What is theirs, shared pages divided among those who share them (PSS)."""
        return sum(_pss(pid) for pid in self._pids())

    def open_files(self) -> int:
        """Descriptors of all of them."""
        return sum(_descriptors(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for entry in PROC.iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.pid]
        for pid in found:
            found += children.get(pid, ())
        return found


def of_data_directory(path: Path) -> int | None:
    """The process that has the directory open: it wrote its id into LOCK. None: no server here."""
    try:
        pid = int((path / "LOCK").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    fields = _stat(pid)
    if not fields:
        return None
    # With several workers it is the engine's: all are their supervisor's children.
    return int(fields[1]) if _name(pid) == ENGINE else pid


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields behind the name, which may contain anything: state, parent …"""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # gone
        return []


def _cpu(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS if fields else 0.0


def _descriptors(pid: int) -> int:
    try:
        return len(list((PROC / str(pid) / "fd").iterdir()))
    except OSError:
        return 0


def _pss(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
