"""Every guarantee of `journal/base.py`, for every adapter. A new adapter is done when it passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hongyan.journal.base import Entry, Journal
from hongyan.journal.sqlite import SqliteJournal
from hongyan.protocol import records as r

EVERY_KIND = [
    r.Send(1, 2, "alice", "alice|bob", "k", "text", b'{"a":[1,"\xc3\xa9"]}', True),
    r.CreateGroup(2, 2, "alice", "#team", "Team \U0001f9a2", "open"),
    r.Join(3, 2, "bob", "#team", 10, 20),
    r.Leave(4, 2, "bob", "#team"),
    r.Invite(5, 2, "alice", "#team", ["bob", "carol"]),
    r.Register(6, 2, "alice", "$argon2id$…"),
    r.Login(7, 2, "alice", "d1", "web"),
    r.DedupWindow(9, 2, 300_000, 200_000),
    r.Cursors(8, 2, [("alice", "d1", {"alice|bob": 4})], [("alice", "d1", 5)]),
]

Opener = Callable[[], Awaitable[Journal]]


def send(n: int, size: int = 10) -> r.Send:
    return r.Send(n, n, "alice", "alice|bob", f"k{n}", "text", b'"' + b"x" * size + b'"')


@pytest.fixture(params=["sqlite"])
async def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """`await reopen()` closes the journal open before and opens it again (the first time: creates it)."""
    opened: list[Journal] = []

    async def open_() -> Journal:
        if opened:
            await opened.pop().close()
        assert request.param == "sqlite"
        opened.append(await asyncio.to_thread(SqliteJournal.open, tmp_path / "journal.db"))
        return opened[0]

    yield open_
    for journal in opened:
        await journal.close()


async def test_a_new_journal_is_empty(reopen: Opener) -> None:
    journal = await reopen()
    assert (journal.first, journal.last) == (1, 0)
    assert list(journal.read(0)) == []
    assert journal.identity
    assert (await reopen()).identity == journal.identity


async def test_offsets_number_records_without_holes_also_across_a_restart(reopen: Opener) -> None:
    written: list[Entry] = []
    for _ in range(3):
        journal = await reopen()
        for size in (1, 3, 2):
            before = journal.last
            entry = await journal.append([send(before + n) for n in range(size)], 1000 + before)
            assert (entry.first, entry.last, entry.log_ms) == (before + 1, before + size, 1000 + before)
            assert journal.last == entry.last
            written.append(entry)
    journal = await reopen()
    assert list(journal.read(0)) == written
    assert (journal.first, journal.last) == (1, 18)


async def test_every_kind_of_record_comes_back_as_it_was(reopen: Opener) -> None:
    entry = await (await reopen()).append(EVERY_KIND, 5)
    (found,) = (await reopen()).read(0)
    assert found == entry
    assert [type(record) for record in found.records] == [type(record) for record in EVERY_KIND]


async def test_large_batches_come_back_whole(reopen: Opener) -> None:
    batch = [send(n, 60_000) for n in range(12)]
    await (await reopen()).append(batch, 5)
    (found,) = (await reopen()).read(0)
    assert list(found.records) == batch


async def test_an_empty_batch_is_refused(reopen: Opener) -> None:
    journal = await reopen()
    with pytest.raises(ValueError):
        await journal.append([], 5)
    assert (await journal.append([send(1)], 5)).first == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_read_begins_at_the_entry_that_holds_the_next_record(reopen: Opener, restart: bool) -> None:
    journal = await reopen()
    for size in (2, 3, 1):  # 1-2, 3-5, 6
        await journal.append([send(n) for n in range(size)], 5)
    if restart:
        journal = await reopen()
    begins = {after: [entry.first for entry in journal.read(after)] for after in range(8)}
    everything, from_3, from_6 = [1, 3, 6], [3, 6], [6]
    assert begins == {0: everything, 1: everything, 2: from_3, 3: from_3, 4: from_3, 5: from_6, 6: [], 7: []}


async def test_trim_forgets_whole_entries_up_to_the_offset(reopen: Opener) -> None:
    journal = await reopen()
    for size in (2, 3, 1, 1):  # 1-2, 3-5, 6, 7
        await journal.append([send(n) for n in range(size)], 5)
    for upto, first in ((0, 1), (1, 1), (2, 3), (4, 3), (5, 6), (3, 6)):
        await journal.trim(upto)
        assert journal.first == first
        assert next(entry.first for entry in journal.read(0)) == first
    journal = await reopen()
    assert (journal.first, journal.last) == (6, 7)
    assert [entry.first for entry in journal.read(0)] == [6, 7]


@pytest.mark.parametrize("upto", [3, 10**12])
async def test_trim_never_forgets_the_newest_entry_so_offsets_go_on(reopen: Opener, upto: int) -> None:
    journal = await reopen()
    await journal.trim(upto)
    assert (journal.first, journal.last) == (1, 0)
    await journal.append([send(1)], 5)
    newest = await journal.append([send(2), send(3)], 6)
    await journal.trim(upto)
    assert list(journal.read(0)) == [newest]
    journal = await reopen()
    assert (journal.first, journal.last) == (2, 3)
    assert (await journal.append([send(4)], 7)).first == 4


async def test_trim_takes_many_entries_and_appends_go_on_meanwhile(reopen: Opener) -> None:
    journal = await reopen()
    for n in range(400):
        await journal.append([send(n, 20_000)], 5)
    trim = asyncio.create_task(journal.trim(390))
    appended = 0
    while not trim.done():
        await journal.append([send(400 + appended)], 5)
        appended += 1
    assert appended > 1, "the append waited for the whole trim"
    assert (journal.first, journal.last) == (391, 400 + appended)
    assert [entry.first for entry in (await reopen()).read(0)] == list(range(391, 401 + appended))


async def test_the_loop_runs_while_an_append_is_under_way(reopen: Opener) -> None:
    journal = await reopen()
    append = asyncio.create_task(journal.append([send(1)], 5))
    turns = 0
    while not append.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 1


async def test_a_cancelled_append_makes_no_hole_and_no_clash(reopen: Opener) -> None:
    journal = await reopen()
    append = asyncio.create_task(journal.append([send(1), send(2)], 5))
    await asyncio.sleep(0)  # handed over, not answered
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    entry = await journal.append([send(3)], 6)
    assert journal.last == entry.last
    offsets = [offset for found in journal.read(0) for offset in range(found.first, found.last + 1)]
    assert offsets == list(range(1, entry.last + 1))


async def test_close_waits_for_the_append_under_way_and_is_idempotent(reopen: Opener) -> None:
    journal = await reopen()
    append = asyncio.create_task(journal.append([send(1)], 5))
    await asyncio.sleep(0)
    await asyncio.gather(journal.close(), journal.close())
    assert append.done()
    entry = append.result()
    await journal.close()
    with pytest.raises(OSError, match="closed"):
        await journal.append([send(2)], 5)
    assert list((await reopen()).read(0)) == [entry]


async def test_close_does_not_wait_for_a_whole_trim_but_answers_it(reopen: Opener) -> None:
    journal = await reopen()
    for n in range(300):
        await journal.append([send(n)], 5)
    trim = asyncio.create_task(journal.trim(299))
    await asyncio.sleep(0)
    await journal.close()
    async with asyncio.timeout(10):
        await trim
    journal = await reopen()
    assert [entry.first for entry in journal.read(0)] == list(range(journal.first, 301))
