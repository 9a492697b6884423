"""Which of RocksDB's errors a write is tried again after: judged by the status, never by a path in its text."""

from __future__ import annotations

import pytest

from hongyan.store.rocks import passing


@pytest.mark.parametrize(
    "text",
    [
        "IO error: No space left on device: While appending to file: /data/000012.log: No space left on device",
        "Result incomplete: Write stall",
        "Resource busy: ",
        "Operation failed. Try again.: ",
        "Shutdown in progress: ",
    ],
)
def test_what_may_pass_is_tried_again(text: str) -> None:
    assert passing(Exception(text))


def test_a_store_that_could_not_open_a_file_does_not_recover() -> None:
    """Measured: every later write fails the same way, until it is opened again."""
    assert not passing(
        Exception("IO error: While open a file for appending: /d/000008.log: Too many open files")
    )


@pytest.mark.parametrize("name", ["install", "busybox", "no space", "incomplete", "try again"])
def test_a_failed_fsync_ends_the_process_wherever_it_was(name: str) -> None:
    path = f"/srv/{name}/store/000012.log"
    assert not passing(Exception(f"IO error: While fsync: {path}: Input/output error"))
    assert not passing(Exception(f"Corruption: bad block in {path}"))
