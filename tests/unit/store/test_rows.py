"""How a conversation's messages are cut into rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hongyan.store.rows import FIRST, RUN_BYTES, RUN_MESSAGES, _runs
from store_rows import message


@given(
    st.lists(st.sampled_from([2, 200, RUN_BYTES // 2, RUN_BYTES, RUN_BYTES + 1]), min_size=1, max_size=300)
)
def test_a_run_is_bounded_and_as_long_as_it_can_be(sizes: list[int]) -> None:
    messages = [message("#g", seq, size=size) for seq, size in enumerate(sizes, 1)]
    runs = list(_runs(messages))
    assert [m for run in runs for m in run] == messages
    lengths = [sum(len(m.content) for m in run) for run in runs]
    for run, length in zip(runs, lengths, strict=True):
        assert 1 <= len(run) <= RUN_MESSAGES
        assert length <= RUN_BYTES or len(run) == 1
        assert run[0].seq > FIRST or run[-1].seq <= FIRST
    for run, following, length in zip(runs, runs[1:], lengths, strict=False):
        full = len(run) == RUN_MESSAGES or length + len(following[0].content) > RUN_BYTES
        assert full or run[-1].seq == FIRST
