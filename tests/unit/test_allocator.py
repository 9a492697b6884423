"""What RocksDB frees goes back to the system, whatever still lives beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server_process import SOURCES

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")

# In place of serving: 100 write-buffer blocks of 512 KiB with something small that stays behind each of them. Prints
# the MiB that the process holds of them, and still holds after they are freed. The first free is what raises
# glibc's own threshold.
PROGRAM = """
import ctypes, pathlib, sys
from hongyan import app
from hongyan.config import load
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
def measure(settings):
    libc.free(libc.malloc(1 << 20))
    before, blocks = resident(), []
    for _ in range(100):
        blocks.append(libc.malloc(512 << 10))
        ctypes.memset(blocks[-1], 1, 512 << 10)
        libc.malloc(2048)
    full = resident()
    for block in blocks:
        libc.free(block)
    print(full - before, resident() - before)
    return 0
app.single.run = measure
settings = load({}, None)
sys.exit(app.run(settings) if sys.argv[1] == "as the server" else measure(settings))
"""


def held(how: str, **variables: str) -> tuple[float, float]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCES)} | variables, timeout=60,
    )  # fmt: skip
    full, after = map(float, run.stdout.split())
    return full, after


def test_freed_write_buffers_do_not_stay_in_the_heap() -> None:
    full, after = held("as the server")
    assert full > 45
    assert after < 10
    assert held("as glibc does")[1] > 40  # what it is for: where this fails, the C library has learnt it


@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_THRESHOLD_": str(32 << 20)},
        {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={32 << 20}"},
    ],
)
def test_what_the_operator_has_set_holds(variables: dict[str, str]) -> None:
    assert held("as the server", **variables)[1] > 40
