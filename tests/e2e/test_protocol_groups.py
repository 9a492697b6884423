"""protocol.md: groups, invitations, group events, history, conversations, presence."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


async def test_create_answers_and_again_by_its_owner_the_same(login, name):
    a, b, group = await login(name("a")), await login(name("b")), f"#{name('g')}"
    made = await a.ask("create_group", {"group": group, "name": "Team 鸿", "join": "open"})
    del made["ref"]
    assert made == {
        "group": group,
        "name": "Team 鸿",
        "join": "open",
        "owner": name("a"),
        "members": 1,
        "seq": 0,
        "first_seq": 1,
    }
    again = await a.ask("create_group", {"group": group, "name": "Other"})
    assert again["owner"] == name("a")
    assert again["name"] == "Team 鸿"
    assert (await b.refused("create_group", {"group": group}))["code"] == "already_exists"


async def test_a_group_without_a_name_gets_an_id(login, name):
    a = await login(name("a"))
    made = await a.ask("create_group", {})
    assert made["group"].startswith("#")
    assert made["name"] == ""
    assert made["join"] == "open"
    await a.say(made["group"], 1)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"group": "team"}, "invalid_field"),
        ({"group": "@team"}, "invalid_field"),
        ({"group": "#"}, "invalid_field"),
        ({"group": "#hongyan.x"}, "forbidden"),
        ({"name": 3}, "invalid_field"),
        ({"join": "secret"}, "invalid_field"),
        ({"name": "x" * 129}, "too_large"),
    ],
)
async def test_a_bad_group_is_refused(login, name, data, code):
    a = await login(name("a"))
    assert (await a.refused("create_group", data))["code"] == code


async def test_members_see_a_group_from_their_first_seq_on(login, name):
    a, b, group = await login(name("a")), await login(name("b")), f"#{name('g')}"
    await a.ask("create_group", {"group": group})
    for n in range(3):
        await a.say(group, n)
    joined = await b.ask("join_group", {"group": group})
    assert (joined["seq"], joined["first_seq"], joined["members"]) == (3, 4, 2)
    again = await b.ask("join_group", {"group": group})
    assert (again["first_seq"], again["members"]) == (4, 2)
    assert await b.sync() == []
    assert await b.all_history(group) == []
    row = (await b.ask("conversations"))["conversations"][0]
    assert (row["conversation"], row["last_message"], row["first_seq"]) == (group, None, 4)
    await a.say(group, "new")
    push = await b.push("message")
    assert (push["data"]["conversation"], push["data"]["seq"]) == (group, 4)
    assert [m["seq"] for m in await b.sync()] == [4]
    assert [m["seq"] for m in await b.sync(cursors={group: 0})] == [4]
    row = (await b.ask("conversations"))["conversations"][0]
    assert row["last_message"]["content"] == "new"
    assert (row["acked_seq"], row["last_seq"], row["read_seq"]) == (3, 4, 0)


async def test_leaving_ends_everything(login, name):
    a, b, group = await login(name("a")), await login(name("b")), f"#{name('g')}"
    await a.ask("create_group", {"group": group})
    await b.ask("join_group", {"group": group})
    stored = await b.say(group, "mine", key="k")
    await a.say(group, "undelivered")
    assert (await b.ask("leave_group", {"group": group}))["group"] == group
    await b.ask("leave_group", {"group": group})
    await b.barrier()
    b.unread.clear()
    await a.say(group, "after")
    await b.barrier()
    assert [e for e in b.unread if e["type"] == "message"] == []
    assert await b.sync() == []
    assert (await b.ask("conversations"))["conversations"] == []
    assert (await b.refused("history", {"conversation": group}))["code"] == "not_member"
    error = await b.refused("send_message", {"to": group, "content_type": "t", "content": 1})
    assert error["code"] == "not_member"
    again = await b.say(group, "mine", key="k", retry=True)  # looked up before membership
    assert again["data"]["duplicate"] is True
    assert again["data"]["seq"] == stored["data"]["seq"]
    joined = await b.ask("join_group", {"group": group})
    assert joined["first_seq"] == 4


async def test_a_stranger_to_a_group(login, name):
    a, b, group = await login(name("a")), await login(name("b")), f"#{name('g')}"
    await a.ask("create_group", {"group": group})
    assert (await b.refused("join_group", {"group": "#no.such.group"}))["code"] == "unknown_group"
    assert (await b.refused("history", {"conversation": "#no.such.group"}))["code"] == "unknown_group"
    assert (await b.refused("history", {"conversation": group}))["code"] == "not_member"
    assert (await b.refused("invite", {"group": group, "users": [f"@{name('a')}"]}))["code"] == "not_member"
    assert (await b.refused("send_message", {"to": group, "content_type": "t", "content": 1}))[
        "code"
    ] == "not_member"
    await a.say(group, "private")
    assert await b.sync(cursors={group: 0}) == []


async def test_an_invitation_opens_the_door_until_they_leave(login, name):
    a, b, group = await login(name("a")), await login(name("b")), f"#{name('g')}"
    await a.ask("create_group", {"group": group, "join": "invite"})
    assert (await b.refused("join_group", {"group": group}))["code"] == "forbidden"
    assert (await a.ask("invite", {"group": group, "users": [f"@{name('b')}"]}))["group"] == group
    await b.ask("join_group", {"group": group})
    await b.ask("leave_group", {"group": group})
    assert (await b.refused("join_group", {"group": group}))["code"] == "forbidden"


async def test_an_invitation_takes_at_most_100(login, name):
    a, group = await login(name("a")), f"#{name('g')}"
    await a.ask("create_group", {"group": group})
    many = [f"@u{n}" for n in range(101)]
    assert (await a.refused("invite", {"group": group, "users": many}))["code"] == "too_large"
    assert (await a.refused("invite", {"group": group, "users": ["bob"]}))["code"] == "invalid_field"
    assert (await a.refused("presence", {"users": many}))["code"] == "too_large"


async def test_the_longest_member_becomes_owner_and_the_next_to_join_an_empty_group(login, name):
    a, b, c, group = await login(name("a")), await login(name("b")), await login(name("c")), f"#{name('g')}"
    await a.ask("create_group", {"group": group})
    await b.ask("join_group", {"group": group})
    await c.ask("join_group", {"group": group})
    await a.ask("leave_group", {"group": group})
    assert (await c.push("group_event", event="owner"))["data"]["user"] == name("b")
    assert (await b.ask("create_group", {"group": group}))["owner"] == name("b")
    await b.ask("leave_group", {"group": group})
    await c.ask("leave_group", {"group": group})
    await a.ask("join_group", {"group": group})
    assert (await a.ask("create_group", {"group": group}))["owner"] == name("a")


async def test_group_events_reach_members_and_own_devices(login, name):
    a, b1, b2, group = (
        await login(name("a")),
        await login(name("b")),
        await login(name("b"), "d2"),
        f"#{name('g')}",
    )
    await a.ask("create_group", {"group": group})
    await b1.ask("join_group", {"group": group})
    expected = {"group": group, "event": "joined", "user": name("b")}
    assert (await a.push("group_event", event="joined", user=name("b")))["data"] == expected
    assert (await b2.push("group_event", event="joined"))["data"] == expected
    await a.say(group, 1)
    assert (await b2.push("message"))["data"]["seq"] == 1  # an event takes no seq
    await b1.ask("leave_group", {"group": group})
    await a.push("group_event", event="left", user=name("b"))
    await b2.push("group_event", event="left", user=name("b"))


async def test_group_seq_is_the_same_for_everyone_and_own_ack_fills_the_gap(login, name):
    members = [await login(name(f"m{n}")) for n in range(3)]
    group = f"#{name('g')}"
    await members[0].ask("create_group", {"group": group})
    for member in members[1:]:
        await member.ask("join_group", {"group": group})
    keys = [[await member.post(group, [who, n]) for n in range(30)] for who, member in enumerate(members)]
    views = []
    for member, own in zip(members, keys, strict=True):
        view = []
        while len(view) < 90:
            envelope = await member.until(lambda e: e["type"] in ("ack", "message"))
            data = envelope["data"]
            view.append(
                (data["seq"], own.index(data["ref"]) if envelope["type"] == "ack" else tuple(data["content"]))
            )
        assert [seq for seq, _ in view] == list(range(1, 91))
        views.append(view)
    history = {m["seq"]: tuple(m["content"]) for m in await members[0].all_history(group)}
    for who, view in enumerate(views):
        assert {seq: (who, what) if isinstance(what, int) else what for seq, what in view} == history


# --- history and conversations ---------------------------------------------------------------------


async def test_history_bounds_are_exclusive(login, name):
    a, b = await login(name("a")), await login(name("b"))
    for n in range(10):
        await a.say(f"@{name('b')}", n)
    peer = f"@{name('a')}"

    async def ask(**bounds):
        data = await b.ask("history", {"conversation": peer, **bounds})
        assert data["conversation"] == peer
        return [m["seq"] for m in data["messages"]], data["has_more"]

    assert await ask() == (list(range(1, 11)), False)
    assert await ask(limit=3) == ([8, 9, 10], True)
    assert await ask(before=5) == ([1, 2, 3, 4], False)
    assert await ask(before=5, limit=2) == ([3, 4], True)
    assert await ask(after=5) == ([6, 7, 8, 9, 10], False)
    assert await ask(after=5, limit=2) == ([6, 7], True)
    assert await ask(after=2, before=6) == ([3, 4, 5], False)
    assert await ask(after=2, before=6, limit=2) == ([3, 4], True)
    assert await ask(after=10) == ([], False)
    assert await ask(before=1) == ([], False)


@pytest.mark.parametrize(
    "bounds", [{"before": -1}, {"after": "1"}, {"limit": 0}, {"limit": 501}, {"before": 1.5}]
)
async def test_history_fields_are_checked(login, name, bounds):
    a = await login(name("a"))
    error = await a.refused("history", {"conversation": f"@{name('a')}", **bounds})
    assert error["code"] == "invalid_field"


async def test_history_with_a_stranger_is_empty_and_of_nobody_unknown(login, name):
    a = await login(name("a"))
    await login(name("b"))
    data = await a.ask("history", {"conversation": f"@{name('b')}"})
    assert (data["messages"], data["has_more"]) == ([], False)
    assert (await a.refused("history", {"conversation": "@no.such.user"}))["code"] == "unknown_user"


async def test_nobody_reads_another_pairs_chat(login, name):
    a, b, c = await login(name("a")), await login(name("b")), await login(name("c"))
    await a.say(f"@{name('b')}", "secret")
    await b.push("message")
    assert await c.all_history(f"@{name('a')}") == []
    assert await c.all_history(f"@{name('b')}") == []
    assert await c.sync(cursors={f"@{name('a')}": 0, f"@{name('b')}": 0}) == []
    await c.barrier()
    assert c.unread == []


async def test_conversations_newest_first_with_pages(login, name):
    b = await login(name("b"))
    for n in range(7):
        peer = await login(name(f"p{n}"))
        await peer.say(f"@{name('b')}", n)
    rows, page = [], await b.ask("conversations", {"limit": 3})
    while True:
        assert len(page["conversations"]) <= 3
        rows += page["conversations"]
        if not page["has_more"]:
            break
        page = await b.ask("conversations", {"limit": 3, "page": page["page"]})
    assert [row["conversation"] for row in rows] == [f"@{name(f'p{n}')}" for n in range(6, -1, -1)]
    first = rows[0]
    assert set(first) == {"conversation", "last_seq", "first_seq", "acked_seq", "read_seq", "last_message"}
    assert (first["last_seq"], first["first_seq"], first["acked_seq"], first["read_seq"]) == (1, 1, 0, 0)
    assert first["last_message"]["content"] == 6


# --- presence --------------------------------------------------------------------------------------


async def test_presence_asks_subscribes_and_unsubscribes(login, name):
    a, bob = await login(name("a")), f"@{name('b')}"
    hidden = {"online": False, "last_seen": None}
    assert (await a.ask("presence", {"users": [bob, "@no.such"]}))["states"] == {
        bob: hidden,
        "@no.such": hidden,
    }
    b = await login(name("b"))
    assert (await a.ask("presence", {"users": [bob], "subscribe": True}))["states"] == {
        bob: {"online": True, "last_seen": None}
    }
    before = int((await b.request("heartbeat"))["timestamp"])
    await b.close()
    state = (await a.push("presence"))["data"]["states"][bob]
    assert state["online"] is False
    assert state["last_seen"] >= before
    b = await login(name("b"))
    assert (await a.push("presence"))["data"]["states"][bob] == {"online": True, "last_seen": None}
    await a.ask("presence", {"users": [bob], "subscribe": False})
    await b.close()
    c = await login(name("c"))
    await c.ask("presence", {"users": [bob], "subscribe": True})
    await c.push("presence")
    await a.barrier()
    assert a.unread == []


async def test_a_reconnect_shows_nobody_a_flicker(login, name):
    a, bob = await login(name("a")), f"@{name('b')}"
    b = await login(name("b"))
    await a.ask("presence", {"users": [bob], "subscribe": True})
    b.abort()
    b = await login(name("b"))
    assert (await a.ask("presence", {"users": [bob]}))["states"][bob]["online"] is True
    await b.close()
    state = (await a.push("presence"))["data"]["states"][bob]
    assert state["online"] is False  # the first push is the true going, not the flicker
    assert [e for e in a.unread if e["type"] == "presence"] == []
