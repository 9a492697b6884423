"""The clock mark is saved by a thread, and a disk that does not take it breaks nothing that is said."""

from __future__ import annotations

import asyncio
import errno
import threading

import pytest

from hongyan.ids import EPOCH_MS, Snowflake, time_ms
from hongyan.reserve import Reserve

NOW = EPOCH_MS + 50_000_000_000


async def test_what_is_saved_may_be_issued() -> None:
    snowflake, saved = Snowflake(1, lambda: NOW, mark_ms=0), list[int]()
    reserve = Reserve(snowflake, saved.append, pytest.fail)
    await reserve.renew()
    await reserve.renew()
    assert len(saved) == 1
    assert NOW == time_ms(snowflake.next()) < saved[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_waited_out(code: int) -> None:
    full = True

    def save(mark: int) -> None:
        if full:
            raise OSError(code, "no room")

    snowflake = Snowflake(1, lambda: NOW, mark_ms=NOW + 1)
    reserve = Reserve(snowflake, save, pytest.fail)
    await reserve.renew()
    assert time_ms(snowflake.next()) == NOW, "what is reserved is still there"
    full = False
    await reserve.renew()
    assert snowflake.to_reserve() == 0


async def test_any_other_error_is_fatal() -> None:
    def save(mark: int) -> None:
        raise OSError(errno.EIO, "broken")

    failures: list[BaseException] = []
    await Reserve(Snowflake(1, lambda: NOW, mark_ms=0), save, failures.append).renew()
    assert [failure.errno for failure in failures if isinstance(failure, OSError)] == [errno.EIO]


async def test_a_slow_disk_keeps_nobody_waiting() -> None:
    saving, go = threading.Event(), threading.Event()

    def save(mark: int) -> None:
        saving.set()
        assert go.wait(10)

    snowflake = Snowflake(1, lambda: NOW, mark_ms=NOW + 1)
    renewing = asyncio.create_task(Reserve(snowflake, save, pytest.fail).renew())
    await asyncio.to_thread(saving.wait, 10)
    assert time_ms(snowflake.next()) == NOW
    go.set()
    await renewing
