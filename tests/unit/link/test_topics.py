"""Which link carries what, counted; against sets of sessions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hongyan.link.topics import Carried, Topics

steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "add", "drop", "leave"]), st.integers(0, 5), st.sampled_from(["#g", "#h"])
    )
)


@given(steps)
def test_a_link_carries_what_one_of_its_sessions_carries(moves: list[tuple[str, int, str]]) -> None:
    topics: Topics[str] = Topics()
    sessions = [Carried(f"link{n % 2}", n, f"user{n // 2}", f"d{n}") for n in range(6)]
    inside: dict[int, set[str]] = {}
    for what, number, topic in moves:
        carried = sessions[number]
        if what == "enter" and number not in inside:
            topics.enter(carried)
            inside[number] = {f"@{carried.user}"}
        elif number in inside and what == "add":
            topics.add(carried, topic)
            inside[number].add(topic)
        elif number in inside and what == "drop":
            topics.drop(carried, topic)
            inside[number].discard(topic)
        elif what == "leave":
            topics.leave(carried)
            inside.pop(number, None)
    expected: dict[str, set[str]] = {}
    for number, theirs in inside.items():
        for topic in theirs:
            expected.setdefault(topic, set()).add(sessions[number].link)
    assert {topic: set(links) for topic, links in topics.table.items()} == expected
    for user in ("user0", "user1", "user2"):
        assert {each.session for each in topics.sessions(user)} == {
            number for number in inside if sessions[number].user == user
        }
