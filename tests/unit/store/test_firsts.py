"""What a look-up has read of a conversation's first messages is not read again."""

from __future__ import annotations

from pathlib import Path

from hongyan.store.rocks import RocksStore
from hongyan.store.rows import FIRST
from store_rows import changes, message


async def test_a_resend_reads_what_has_come_since_the_last_one(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    store = RocksStore.open(tmp_path / "store", "journal", fatal=failures.append)
    reads: list[bytes] = []
    get = store._get

    def counted(key: bytes) -> bytes | None:
        reads.append(key)
        return get(key)

    store._get = counted  # type: ignore[method-assign]
    for seq in range(1, FIRST + 9):
        store.apply(seq, changes(message("a|b", seq)))
        await store.sync()
        assert store.find("alice", "a|b", "absent") is None
        # The index of keys, the run that is new while these are first ones, and the one that may follow it.
        assert len(reads) <= 3, seq
        reads.clear()
    for _ in range(2):
        assert store.find("alice", "a|b", f"k{FIRST}") is not None
        assert len(reads) == 1
        reads.clear()
    await store.close()
    assert failures == []
