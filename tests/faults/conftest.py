"""Fault tests run a few rounds in `make test` and many with HONGYAN_TEST_LONG=1."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def rounds() -> int:
    return 20 if os.environ.get("HONGYAN_TEST_LONG") else 2


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a given size ("48m"); skips where one cannot."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("needs root to mount a small tmpfs")
        point = tmp_path / "disk"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
        mounted.append(point)
        return point

    yield mount
    for point in mounted:
        subprocess.run(["umount", "-l", point], check=True)


@pytest.fixture(scope="session")
def shadow_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """disk_shadow.c, built: preloaded, it keeps each file of a directory as of its last fsync."""
    built = tmp_path_factory.mktemp("shadow") / "shadow.so"
    source = Path(__file__).with_name("disk_shadow.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl", "-lpthread"], check=True)
    return built
