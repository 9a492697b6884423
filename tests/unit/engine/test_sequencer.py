"""The fold: gapless seq, duplicates, membership at its place of the order, and replay."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fold import Fold
from hongyan.engine.sequencer import LATE_MS, Sequencer
from hongyan.engine.window import Window
from hongyan.protocol import records
from hongyan.protocol.names import direct_key
from hongyan.protocol.outcomes import Duplicate, GroupChanged, Outcome, Rejected, UserReady
from hongyan.protocol.state import Message


def seq_of(outcome: Outcome) -> int:
    assert isinstance(outcome, Message), outcome
    return outcome.seq


def code_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Rejected), outcome
    return outcome.code


def test_direct_messages_number_one_conversation_from_both_sides() -> None:
    fold = Fold()
    fold.login("alice"), fold.login("bob")
    assert [seq_of(fold.send("alice", "bob", "1")), seq_of(fold.send("bob", "alice", "1"))] == [1, 2]
    assert seq_of(fold.send("alice", "alice", "1")) == 1
    assert code_of(fold.send("alice", "carol", "1")) == "unknown_user"
    assert seq_of(fold.send("alice", "bob", "2")) == 3, "a refused send takes no seq"


def test_duplicates_inside_the_window_and_with_retry_for_ever() -> None:
    fold = Fold(span_ms=1000, limit=3)
    fold.login("alice"), fold.login("bob")
    first = fold.send("alice", "bob", "k")
    assert isinstance(first, Message)
    again = fold.send("alice", "bob", "k")
    assert isinstance(again, Duplicate) and again.sent.id == first.id
    fold.now += 1001
    later = fold.send("alice", "bob", "k", retry=True)
    assert isinstance(later, Duplicate) and later.sent.seq == 1
    assert seq_of(fold.send("alice", "bob", "k")) == 2, "past the window and without retry it is new"
    for key in "abc":
        fold.send("alice", "bob", key)
    assert seq_of(fold.send("alice", "bob", "k")) == 6, "the window holds three messages"
    assert isinstance(fold.send("alice", "bob", "a", retry=True), Duplicate)


def test_of_a_resend_that_is_there_nothing_else_is_read() -> None:
    """Its conversation may be damaged where the message is not: it costs nobody the fold."""
    fold = Fold()
    fold.login("alice"), fold.login("bob")
    fold.send("alice", "bob", "k")

    def damaged(*names: object) -> None:
        assert not names[0], "a block is damaged"

    fold.store.conversation = damaged  # type: ignore[method-assign, assignment]
    fold.store.conversations = lambda names: damaged(names) or {}  # type: ignore[method-assign, func-returns-value]
    assert isinstance(fold.send("alice", "bob", "k", retry=True), Duplicate)
    assert isinstance(fold.send("alice", "bob", "k", at=fold.now - LATE_MS - 1), Duplicate)


def test_a_late_record_is_looked_up_like_a_retry() -> None:
    fold = Fold(span_ms=10)
    fold.login("alice"), fold.login("bob")
    seq_of(fold.send("alice", "bob", "k"))
    admitted = fold.now
    fold.now += LATE_MS + 1
    assert isinstance(fold.send("alice", "bob", "k", at=admitted), Duplicate)


def test_retry_in_the_same_batch_finds_what_the_window_has_dropped() -> None:
    fold = Fold(limit=1)
    fold.login("alice"), fold.login("bob")
    name = direct_key("alice", "bob")
    batch = [
        records.Send(fold.id(), fold.now, "alice", name, key, "text", b"1", retry)
        for key, retry in (("a", False), ("b", False), ("a", True))
    ]
    kinds = [type(outcome) for outcome in fold.batch(batch)]
    assert kinds == [Message, Message, Duplicate]


def test_groups_decide_membership_at_their_place() -> None:
    fold = Fold()
    for user in ("alice", "bob", "carol"):
        fold.login(user)
    made = fold.create("alice")
    assert isinstance(made, GroupChanged) and made.owner == "alice" and made.first_seq == 1
    assert code_of(fold.create("bob")) == "already_exists"
    assert code_of(fold.send("bob", "#g", "1")) == "not_member"
    assert code_of(fold.send("bob", "#none", "1")) == "unknown_group"
    fold.send("alice", "#g", "1")
    joined = fold.join("bob")
    assert isinstance(joined, GroupChanged) and (joined.first_seq, joined.members) == (2, 2)
    again = fold.join("bob")
    assert isinstance(again, GroupChanged) and not again.events
    assert code_of(fold.join("carol", members=2)) == "group_full"
    assert code_of(fold.join("carol", groups=0)) == "limit_exceeded"
    fold.send("bob", "#g", "b")
    left = fold.leave("bob")
    assert isinstance(left, GroupChanged) and left.events == (("left", "bob"),)
    assert isinstance(fold.send("bob", "#g", "b"), Duplicate), "looked up before membership"
    assert code_of(fold.send("bob", "#g", "c")) == "not_member"


def test_ownership_passes_to_the_longest_standing_and_to_the_next_of_an_empty_group() -> None:
    fold = Fold()
    for user in ("alice", "bob", "carol"):
        fold.login(user)
    fold.create("alice"), fold.join("bob"), fold.join("carol")
    left = fold.leave("alice")
    assert isinstance(left, GroupChanged) and left.events == (("left", "alice"), ("owner", "bob"))
    fold.leave("bob"), fold.leave("carol")
    back = fold.join("carol")
    assert isinstance(back, GroupChanged) and back.events == (("joined", "carol"), ("owner", "carol"))


def test_invitations() -> None:
    fold = Fold()
    for user in ("alice", "bob"):
        fold.login(user)
    fold.create("alice", "#g", "invite")
    assert code_of(fold.join("bob")) == "forbidden"
    assert code_of(fold.batch([records.Invite(fold.id(), 0, "bob", "#g", ["bob"])])[0]) == "not_member"
    fold.batch([records.Invite(fold.id(), 0, "alice", "#g", ["bob"])])
    assert isinstance(fold.join("bob"), GroupChanged)
    fold.leave("bob")
    assert code_of(fold.join("bob")) == "forbidden", "an invitation ends with leaving"


def test_register_refuses_a_user_however_created() -> None:
    fold = Fold()
    assert fold.login("alice") == UserReady("alice", True)
    assert code_of(fold.batch([records.Register(fold.id(), 0, "alice", "hash")])[0]) == "already_exists"


USERS, KEYS, GROUPS = ("a", "b", "c"), ("k1", "k2", "k3"), ("#g", "#h")


def _records() -> st.SearchStrategy[records.Record]:
    user, group = st.sampled_from(USERS), st.sampled_from(GROUPS)
    ids = at = st.integers(1, 10_000)
    yes = st.booleans()
    target = st.one_of(group, st.tuples(user, user).map(lambda pair: direct_key(*pair)), st.text(max_size=3))
    return st.one_of(
        st.builds(
            records.Login, ids, at, user, st.sampled_from("xyz"), st.just(""), st.integers(1, 2),
            st.lists(st.sampled_from("xyz"), max_size=2),
        ),
        st.builds(
            records.Send, ids, at, user, target, st.sampled_from(KEYS), st.just("text"), st.just(b"1"), yes
        ),
        st.builds(records.CreateGroup, ids, at, user, group, st.just(""), st.sampled_from(("open", "invite"))),
        st.builds(records.Join, ids, at, user, group, st.integers(0, 3), st.integers(0, 3)),
        st.builds(records.Leave, ids, at, user, group),
        st.builds(records.Invite, ids, at, user, group, st.lists(user, max_size=2)),
        st.builds(
            records.Cursors, ids, at,
            st.lists(
                st.tuples(user, st.sampled_from("xy"), st.dictionaries(target, st.integers(0, 2**70), max_size=3)),
                max_size=3,
            ),
            st.lists(st.tuples(user, st.sampled_from("xy"), st.integers(0, 9)), max_size=2),
        ),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(st.lists(_records(), min_size=1, max_size=6), min_size=1, max_size=12),
    crash=st.integers(0, 11),
    span=st.integers(0, 40),
    limit=st.integers(1, 4),
    noted=st.booleans(),
)
def test_a_replay_from_any_offset_comes_to_the_same(
    batches: list[list[records.Record]], crash: int, span: int, limit: int, noted: bool
) -> None:
    """Crash after any batch: window rebuilt, rest folded again; the same outcomes and the same rows."""
    whole, broken = Fold(span, limit), Fold(span, limit)
    logs = [1000 + 10 * n for n in range(len(batches))]
    if noted:
        batches[0] = [records.DedupWindow(1, 1, span, limit), *batches[0]]
    for number, record_list in enumerate(batches):  # ids are unique in a log
        batches[number] = [
            _with_id(record, number * 100 + place) for place, record in enumerate(record_list, 1)
        ]
    outcomes = [whole.batch(batch, log) for batch, log in zip(batches, logs, strict=True)]
    for batch, log in zip(batches[:crash], logs, strict=False):
        broken.batch(batch, log)
    broken.window = Window(span, limit)
    broken.sequencer = Sequencer(broken.store, broken.window)
    offset = 1
    for batch, log in zip(batches[:crash], logs, strict=False):
        broken.sequencer.remember(batch, offset, log, False)
        offset += len(batch)
    again = [broken.batch(batch, log) for batch, log in zip(batches[crash:], logs[crash:], strict=True)]
    assert again == outcomes[crash:]
    assert broken.store.snapshot() == whole.store.snapshot()


def _with_id(record: records.Record, id: int) -> records.Record:
    return msgspec.structs.replace(record, id=id)
