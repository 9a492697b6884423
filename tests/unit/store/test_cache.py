"""The cache of two generations: what it holds, for how long, and how it lets go."""

from __future__ import annotations

import weakref
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hongyan.store.cache import Cache


class Row:
    """Something that can be watched being freed."""


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    cache: Cache[int, str] = Cache(10)
    for n in range(100):
        cache.put(n, str(n))
        assert cache.get(0) == "0"
    held = [n for n in range(1, 100) if cache.get(n) is not None]
    assert 9 <= len(held) <= 20
    assert held == list(range(100 - len(held), 100))


def test_refresh_changes_what_is_held_and_takes_in_nothing() -> None:
    cache: Cache[int, str] = Cache(10)
    for n in range(15):  # ten in the older generation
        cache.put(n, "before")
    cache.refresh({n: None if n == 14 else "after" for n in range(10, 100)} | {3: "after"})
    assert cache.get(3) == cache.get(12) == "after"
    assert cache.get(2) == "before"
    assert cache.get(14) is cache.get(50) is None


def test_a_past_generation_is_freed_a_few_rows_at_a_time() -> None:
    cache: Cache[int, Row] = Cache(100)
    refs = []
    for n in range(200):
        row = Row()
        refs.append(weakref.ref(row))
        cache.put(n, row)
    del row
    alive = [100]
    for n in range(200, 300):
        cache.put(n, Row())
        alive.append(sum(ref() is not None for ref in refs[:100]))
    assert alive[-1] == 0
    assert max(before - after for before, after in pairwise(alive)) == 2


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "refresh", "update", "get"]), st.integers(0, 9), st.integers(0, 99)
        ),
        max_size=60,
    )
)
def test_it_never_says_what_is_past(steps: list[tuple[str, int, int]]) -> None:
    """Rows as a store knows them: every change is told by `refresh`, or by `update`."""
    cache: Cache[int, int] = Cache(3)
    rows: dict[int, int] = {}
    for kind, key, value in steps:
        if kind == "get" or (kind == "put" and key not in rows):
            assert cache.get(key) in (None, rows.get(key))
        elif kind == "put":  # what was read
            cache.put(key, rows[key])
        else:
            rows[key] = value
            getattr(cache, kind)({key: value})
    for key, value in rows.items():
        assert cache.get(key) in (None, value)
