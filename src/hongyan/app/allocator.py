"""How the C library's allocator gives memory back (glibc; elsewhere nothing is set)."""

from __future__ import annotations

import ctypes
import os

_M_MMAP_THRESHOLD = -3  # mallopt(3), as in glibc's malloc.h
_M_ARENA_MAX = -8
MMAP_THRESHOLD_BYTES = 256 << 10
ARENAS = 2


def give_freed_memory_back() -> None:
    """Blocks of 256 KiB and more are mapped, and unmapped when freed; before any thread begins.

    RocksDB's write buffers come in blocks of 512 KiB. Once one of them has been freed glibc raises its own threshold
    (mallopt(3), "dynamic mmap threshold") and takes the next ones from the heap, where smaller rows of the block
    cache then lie between them: the heap grew with each compaction, and half of it was holes. Two arenas, because
    few threads allocate and none gives its holes to another. Measured in docs/design/memory.md. What the operator has
    set for glibc in the environment holds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "GLIBC_TUNABLES" in os.environ:
        return
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, ARENAS)
