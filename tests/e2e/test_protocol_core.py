"""protocol.md, "The seven core types", "Cursors and sync", "Order, gaps, recovery"."""

from __future__ import annotations

import asyncio
import json
import time

import jwt
import msgspec
import pytest

from outsider import JSON, MSGPACK, Outsider

pytestmark = pytest.mark.slow


# --- login -----------------------------------------------------------------------------------------


async def test_login_answers_with_the_session(server, connect, name):
    client = await connect()
    token = server.token(name("a"))
    data = await client.ask("login", {"token": token, "device_id": "web-1", "platform": "web"})
    assert data["user_id"] == name("a")
    assert data["device_id"] == "web-1"
    assert data["session_id"]
    assert data["heartbeat_interval_ms"] == 30_000
    assert data["max_frame_bytes"] == 65_536
    assert data["features"] == []


async def test_before_login_anything_else_is_unauthenticated_and_stays_open(server, connect, name):
    client = await connect()
    for type_ in ("heartbeat", "send_message", "sync_offline", "ack", "join_group"):
        assert (await client.refused(type_, {}))["code"] == "unauthenticated"
    await client.login(server.token(name("a")))


async def test_a_second_login_on_a_connection_is_invalid_state(server, login, name):
    client = await login(name("a"))
    error = await client.refused("login", {"token": server.token(name("a")), "device_id": "d1"})
    assert error["code"] == "invalid_state"
    await client.barrier()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"device_id": "d"}, "token"),
        ({"token": 3, "device_id": "d"}, "token"),
        ({"token": "x"}, "device_id"),
        ({"token": "x", "device_id": ""}, "device_id"),
        ({"token": "x", "device_id": "a b"}, "device_id"),
        ({"token": "x", "device_id": "d" * 65}, "device_id"),
        ({"token": "x", "device_id": "d", "platform": "ä"}, "platform"),
    ],
)
async def test_login_with_an_invalid_field_does_not_close(server, connect, name, data, field):
    client = await connect()
    error = await client.refused("login", data)
    assert error["code"] == "invalid_field"
    assert error["field"].split(".")[-1] == field
    await client.login(server.token(name("a")))


def forged(server, user, kind):
    now = int(time.time())
    claims = {"sub": user, "exp": now + 600}
    headers = None
    key = server.secret
    match kind:
        case "garbage":
            return "not.a.token"
        case "empty":
            return ""
        case "none":
            return jwt.encode(claims, None, algorithm="none")
        case "key":
            key = b"another key that is long enough for it"
        case "no exp":
            del claims["exp"]
        case "no sub":
            del claims["sub"]
        case "bad sub":
            claims["sub"] = "a b"
        case "reserved":
            claims["sub"] = "hongyan.system"
        case "nbf":
            claims["nbf"] = now + 600
        case "aud":
            claims["aud"] = "someone"
        case "crit":
            headers = {"crit": ["x"], "x": 1}
        case "hs512":
            return jwt.encode(claims, key + key, algorithm="HS512")
        case "expired":
            claims["exp"] = now - 600
    return jwt.encode(claims, key, algorithm="HS256", headers=headers)


KINDS = [
    "garbage",
    "empty",
    "none",
    "key",
    "no exp",
    "no sub",
    "bad sub",
    "reserved",
    "nbf",
    "aud",
    "crit",
    "hs512",
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_forged_token_is_bad_token_and_closes_4401(server, connect, name, kind):
    client = await connect()
    error = await client.refused("login", {"token": forged(server, name("a"), kind), "device_id": "d"})
    assert error["code"] == "bad_token"
    assert (await client.closed())[0] == 4401


async def test_an_expired_token_is_token_expired_and_closes_4401(server, connect, name):
    client = await connect()
    error = await client.refused("login", {"token": forged(server, name("a"), "expired"), "device_id": "d"})
    assert error["code"] == "token_expired"
    assert (await client.closed())[0] == 4401


async def test_leeway_is_30_s(server, connect, name):
    client = await connect()
    await client.login(server.token(name("a"), ttl_s=-15))


async def test_the_same_device_replaces_the_older_connection_with_4409(login, name):
    first = await login(name("a"))
    second = await login(name("a"))
    assert (await first.closed())[0] == 4409
    await second.barrier()


async def test_the_11th_device_online_is_limit_exceeded(server, connect, login, name):
    clients = [await login(name("a"), f"d{n}") for n in range(10)]
    late = await connect()
    error = await late.refused("login", {"token": server.token(name("a")), "device_id": "d10"})
    assert error["code"] == "limit_exceeded"
    assert (await late.closed())[0] == 4401
    await login(name("a"), "d3")  # one that replaces itself is not an 11th
    assert (await clients[3].closed())[0] == 4409


# --- send_message ----------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_a_message_reaches_every_device_of_both(login, name, subprotocol):
    a1 = await login(name("a"), "d1", subprotocol)
    a2 = await login(name("a"), "d2", JSON)
    b1 = await login(name("b"), "d1", MSGPACK)
    b2 = await login(name("b"), "d2", subprotocol)
    ack = await a1.say(f"@{name('b')}", {"hello": ["鸿雁", None, True, 1, -2.5]}, key="k1")
    assert ack["data"] == {"ref": "k1", "conversation": f"@{name('b')}", "seq": 1, "duplicate": False}
    for client in (b1, b2):
        push = await client.push("message")
        assert push["data"] == {
            "conversation": f"@{name('a')}", "from": name("a"), "seq": 1, "content_type": "text",
            "content": {"hello": ["鸿雁", None, True, 1, -2.5]},
        }  # fmt: skip
        assert (push["message_id"], push["timestamp"]) == (ack["message_id"], ack["timestamp"])
    own = await a2.push("message")
    assert own["data"]["conversation"] == f"@{name('b')}"
    assert own["data"]["key"] == "k1"
    assert own["message_id"] == ack["message_id"]
    await a1.barrier()
    assert a1.unread == []


async def test_sending_to_oneself_is_one_copy_to_the_other_devices(login, name):
    one, two = await login(name("a"), "d1"), await login(name("a"), "d2")
    assert (await one.say(f"@{name('a')}", "note"))["data"]["conversation"] == f"@{name('a')}"
    assert (await two.push("message"))["data"]["seq"] == 1
    await two.barrier()
    await one.barrier()
    assert one.unread == two.unread == []
    assert [m["seq"] for m in await one.all_history(f"@{name('a')}")] == [1]


async def test_the_same_message_id_is_one_message_and_the_first_content_wins(login, name):
    a, other, b = await login(name("a")), await login(name("a"), "d2"), await login(name("b"))
    first = await a.say(f"@{name('b')}", "one", key="k")
    for client, retry in ((a, False), (other, False), (a, True), (other, True)):
        again = await client.say(f"@{name('b')}", "two", key="k", retry=retry)
        assert again["data"]["duplicate"] is True
        assert again["data"]["seq"] == first["data"]["seq"]
        assert (again["message_id"], again["timestamp"]) == (first["message_id"], first["timestamp"])
    assert (await a.say(f"@{name('b')}", "three"))["data"]["seq"] == 2
    assert [m["content"] for m in await b.all_history(f"@{name('a')}")] == ["one", "three"]


async def test_the_key_is_per_sender_and_conversation(login, name):
    a, b, c = await login(name("a")), await login(name("b")), await login(name("c"))
    assert (await a.say(f"@{name('b')}", 1, key="k"))["data"]["seq"] == 1
    assert (await b.say(f"@{name('a')}", 1, key="k"))["data"] == {
        "ref": "k", "conversation": f"@{name('a')}", "seq": 2, "duplicate": False,
    }  # fmt: skip
    assert (await a.say(f"@{name('c')}", 1, key="k"))["data"]["duplicate"] is False
    await c.barrier()


async def test_pipelined_sends_take_seq_in_sending_order_and_a_refused_one_holds_nothing(login, name):
    a, b = await login(name("a")), await login(name("b"))
    keys = []
    for n in range(150):
        keys.append(await a.post(f"@{name('b')}", n))
        if n == 70:
            await a.post("@nobody.at.all.here", n, key="refused")
    acks = [await a.reply(key) for key in keys]
    assert [ack["data"]["seq"] for ack in acks] == list(range(1, 151))
    assert (await a.reply("refused"))["data"]["code"] == "unknown_user"
    assert [(await b.push("message"))["data"]["content"] for _ in range(150)] == list(range(150))


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"to": None}, "invalid_field", "to"),
        ({"to": "bob"}, "invalid_field", "to"),
        ({"to": "@"}, "invalid_field", "to"),
        ({"to": "@a b"}, "invalid_field", "to"),
        ({"to": "@" + "x" * 65}, "invalid_field", "to"),
        ({"to": 3}, "invalid_field", "to"),
        ({"to": "@no-such-user"}, "unknown_user", None),
        ({"to": "#no-such-group"}, "unknown_group", None),
        ({"content_type": ""}, "invalid_field", "content_type"),
        ({"content_type": "a b"}, "invalid_field", "content_type"),
        ({"content_type": "x" * 65}, "invalid_field", "content_type"),
        ({"content_type": "hongyan.recall"}, "invalid_field", "content_type"),
        ({"content_type": 1}, "invalid_field", "content_type"),
        ({"retry": "yes"}, "invalid_field", "retry"),
    ],
)
async def test_a_bad_send_is_refused_by_name(login, name, change, code, field):
    a = await login(name("a"))
    data = {"to": f"@{name('a')}", "content_type": "t", "content": 1} | change
    error = await a.refused("send_message", data)
    assert error["code"] == code
    if field:
        assert error["field"].split(".")[-1] == field
    await a.barrier()


@pytest.mark.parametrize("missing", ["to", "content_type", "content"])
async def test_a_missing_field_is_invalid_field(login, name, missing):
    a = await login(name("a"))
    data = {"to": f"@{name('a')}", "content_type": "t", "content": 1}
    del data[missing]
    error = await a.refused("send_message", data)
    assert error["code"] == "invalid_field"
    assert error["field"].split(".")[-1] == missing


@pytest.mark.parametrize("group", [False, True])
async def test_reserved_and_bare_words_as_content_type(login, name, group):
    a = await login(name("a"))
    data = {"to": f"@{name('a')}", "content_type": "app/x.y+z-1_", "content": None}
    assert (await a.request("send_message", data))["type"] == "ack"


# --- content ---------------------------------------------------------------------------------------


def sending(user: str, content: str) -> str:
    """A send_message whose content is this very text, valid JSON or not."""
    data = f'{{"to":"@{user}","content_type":"t","content":{content}}}'
    return f'{{"type":"send_message","message_id":"k","data":{data}}}'


GOOD = [
    "null",
    "true",
    "0",
    "-0.5",
    "1e10",
    "123456789012345678901234567890",
    '"\\u0000"',
    '"\\ud83e\\udda2"',
    "[]",
    "{}",
    "[" * 64 + "]" * 64,
    '{"a":' * 64 + "1" + "}" * 64,
    "1" * 100,
    "18446744073709551615",
    '{"a":1,"a":2}',
    '"\\u2028"',
]


@pytest.mark.parametrize("text", GOOD)
async def test_content_arrives_as_it_was_sent(login, name, text):
    a, b, m = await login(name("a")), await login(name("b")), await login(name("b"), "d2", MSGPACK)
    body = sending(name("b"), text)
    await a.raw(body)
    assert (await a.reply("k"))["type"] == "ack"
    assert (await b.push("message"))["data"]["content"] == json.loads(text)
    expected = json.loads(text)
    big = isinstance(expected, int) and not -(1 << 63) <= expected < 1 << 64
    assert (await m.push("message"))["data"]["content"] == (float(expected) if big else expected)


BAD = [
    "[" * 65 + "]" * 65,
    '{"a":' * 65 + "1" + "}" * 65,
    "[" * 1100 + "]" * 1100,
    "1" * 101,
    "1" * 5000,
    "1e400",
    "-1e400",
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '{"\\ud800":1}',
]


@pytest.mark.parametrize("text", BAD)
async def test_content_another_client_would_choke_on_never_gets_in(login, name, text):
    a = await login(name("a"))
    body = sending(name("a"), text)
    await a.raw(body)
    error = (await a.reply("k"))["data"]
    assert error["code"] == "invalid_field"
    assert error["field"].split(".")[-1] == "content"
    assert await a.all_history(f"@{name('a')}") == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "01", "'x'", "[1,]", '"\t"', "{1:2}", "tru", '"\\x41"'])
async def test_what_is_not_rfc_8259_is_malformed_or_invalid(login, name, text):
    a = await login(name("a"))
    body = sending(name("a"), text)
    await a.raw(body)
    error = (await a.until(lambda e: e["type"] == "error"))["data"]
    assert error["code"] in ("malformed", "invalid_field")
    assert await a.all_history(f"@{name('a')}") == []


def packed(user, content: bytes) -> bytes:
    pack = msgspec.msgpack.encode
    data = (
        b"\x83" + pack("to") + pack(f"@{user}") + pack("content_type") + pack("t") + pack("content") + content
    )
    return (
        b"\x83" + pack("type") + pack("send_message") + pack("message_id") + pack("k") + pack("data") + data
    )


@pytest.mark.parametrize(
    "content",
    [
        b"\xc4\x01x",
        b"\xd4\x05x",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xcb\x7f\xf0" + b"\x00" * 6,
        b"\xcb\x7f\xf8" + b"\x00" * 6,
        b"\x81\x01\x02",
        b"\x91" * 65 + b"\xc0",
        b"\xca\x7f\x80\x00\x00",
    ],
)
async def test_msgpack_content_outside_the_json_types_is_invalid(login, name, content):
    a = await login(name("a"), subprotocol=MSGPACK)
    await a.raw(packed(name("a"), content))
    error = (await a.until(lambda e: e["type"] == "error"))["data"]
    assert error["code"] == "invalid_field"
    assert await a.all_history(f"@{name('a')}") == []


async def test_msgpack_strings_are_utf8(login, name):
    a = await login(name("a"), subprotocol=MSGPACK)
    await a.raw(packed(name("a"), b"\xa1\xff"))
    error = (await a.until(lambda e: e["type"] == "error"))["data"]
    assert error["code"] in ("malformed", "invalid_field")


async def test_msgpack_numbers_reach_json(login, name):
    a, b = await login(name("a"), subprotocol=MSGPACK), await login(name("b"))
    for number in ((1 << 64) - 1, -(1 << 63), 0.1):
        await a.say(f"@{name('b')}", number)
        assert (await b.push("message"))["data"]["content"] == number


# --- ack -------------------------------------------------------------------------------------------


async def test_ack_is_cumulative_clamped_and_never_moves_back(login, name):
    a, b = await login(name("a")), await login(name("b"))
    for n in range(5):
        await a.say(f"@{name('b')}", n)

    async def acked():
        row = (await b.ask("conversations"))["conversations"][0]
        return row["acked_seq"]

    assert await acked() == 0
    await b.send("ack", {"conversation": f"@{name('a')}", "seq": 3})
    assert await acked() == 3
    await b.send("ack", {"acks": {f"@{name('a')}": 1, "@never": 9, "#never": 9}})
    assert await acked() == 3
    assert [m["seq"] for m in await b.sync()] == [4, 5]
    await b.send("ack", {"acks": {f"@{name('a')}": 10**15}})
    assert await acked() == 5
    await a.say(f"@{name('b')}", 5)
    assert [m["seq"] for m in await b.sync()] == [6]


@pytest.mark.parametrize("seq", [-1, 1.5, "1", None, True])
async def test_an_ack_that_is_no_count_is_invalid_field(login, name, seq):
    a = await login(name("a"))
    assert (await a.refused("ack", {"conversation": f"@{name('a')}", "seq": seq}))["code"] == "invalid_field"
    assert (await a.refused("ack", {"acks": {f"@{name('a')}": seq}}))["code"] == "invalid_field"


async def test_ack_answers_nothing(login, name):
    a = await login(name("a"))
    await a.say(f"@{name('a')}", 1)
    await a.send("ack", {"conversation": f"@{name('a')}", "seq": 1})
    await a.barrier()
    assert a.unread == []


# --- sync_offline ----------------------------------------------------------------------------------


async def test_a_first_device_gets_all_and_a_second_starts_where_the_furthest_stands(server, login, name):
    a = await login(name("a"))
    await login(name("b"), "d1")
    for n in range(6):
        await a.say(f"@{name('b')}", n)
    b = await login(name("b"), "d1")
    items = await b.sync()
    assert [m["seq"] for m in items] == [1, 2, 3, 4, 5, 6]
    assert items[0]["conversation"] == f"@{name('a')}"
    assert items[0]["from"] == name("a")
    assert items[0]["content"] == 0
    assert isinstance(items[0]["timestamp"], int)
    assert isinstance(items[0]["message_id"], str)
    await b.send("ack", {"conversation": f"@{name('a')}", "seq": 4})
    await b.barrier()
    second = await login(name("b"), "d2")
    assert [m["seq"] for m in await second.sync()] == [5, 6]
    assert [m["seq"] for m in await second.all_history(f"@{name('a')}")] == [1, 2, 3, 4, 5, 6]


async def test_own_messages_are_synced_with_their_key(login, name):
    a, b = await login(name("a")), await login(name("b"))
    await a.say(f"@{name('b')}", 1, key="mine")
    assert [(m["conversation"], m["key"]) for m in await a.sync()] == [(f"@{name('b')}", "mine")]
    assert ["key" in m for m in await b.sync()] == [False]


async def test_sync_pages_visit_each_conversation_once_in_order(login, name):
    b = await login(name("b"))
    peers = [await login(name(f"p{n}")) for n in range(4)]
    for peer in peers:
        for key in [await peer.post(f"@{name('b')}", n) for n in range(23)]:
            assert (await peer.reply(key))["type"] == "ack"
    page = await b.ask("sync_offline", {"limit": 7})
    seen, visits = [], []
    while True:
        assert len(page["messages"]) <= 7
        seen += page["messages"]
        if not page["has_more"]:
            assert page["page"] is None
            break
        # acks do not change a sync under way
        await b.send("ack", {"acks": {f"@{name(f'p{n}')}": 23 for n in range(4)}})
        page = await b.ask("sync_offline", {"limit": 7, "page": page["page"]})
    for item in seen:
        if not visits or visits[-1] != item["conversation"]:
            visits.append(item["conversation"])
    assert sorted(visits) == sorted(f"@{name(f'p{n}')}" for n in range(4))
    for visit in visits:
        assert [m["seq"] for m in seen if m["conversation"] == visit] == list(range(1, 24))


async def test_given_cursors_override_the_devices(login, name):
    a, b = await login(name("a")), await login(name("b"))
    for n in range(5):
        await a.say(f"@{name('b')}", n)
    await b.send("ack", {"conversation": f"@{name('a')}", "seq": 5})
    assert await b.sync() == []
    assert [m["seq"] for m in await b.sync(cursors={f"@{name('a')}": 2})] == [3, 4, 5]
    assert [m["seq"] for m in await b.sync(cursors={f"@{name('a')}": 2**53, "@stranger": 1})] == []


@pytest.mark.parametrize("limit", [0, 501, -1, "7", 1.5, None])
async def test_sync_limits_are_checked(login, name, limit):
    a = await login(name("a"))
    if limit is None:
        await a.ask("sync_offline", {})
    else:
        assert (await a.refused("sync_offline", {"limit": limit}))["code"] == "invalid_field"


async def test_an_unreadable_page_is_invalid_field_after_sync(login, name):
    a = await login(name("a"))
    error = await a.refused("sync_offline", {"page": "nonsense"})
    assert (error["code"], error["retry"]) == ("invalid_field", "after_sync")
    assert (await a.refused("conversations", {"page": "nonsense"}))["code"] == "invalid_field"


async def test_a_page_holds_only_on_its_connection(login, name):
    a, b = await login(name("a")), await login(name("b"))
    for n in range(3):
        await a.say(f"@{name('b')}", n)
    page = await b.ask("sync_offline", {"limit": 1})
    assert page["has_more"]
    again = await login(name("b"), "other")
    assert (await again.refused("sync_offline", {"page": page["page"]}))["retry"] == "after_sync"


async def test_a_backlog_of_200_messages_of_60_kb_arrives_without_4430(login, name):
    a = await login(name("a"))
    await login(name("b"))
    for base in range(0, 200, 20):
        keys = [await a.post(f"@{name('b')}", f"{base + n}:" + "x" * 60_000) for n in range(20)]
        for key in keys:
            assert (await a.reply(key))["type"] == "ack"
    b = await login(name("b"))
    items = await b.sync(limit=500)
    assert [m["seq"] for m in items] == list(range(1, 201))
    assert all(len(m["content"]) > 60_000 for m in items)
    # pipelined reads wait for room in the buffer, they never trip the limit
    refs = [await b.send("history", {"conversation": f"@{name('a')}", "limit": 500}) for _ in range(20)]
    for ref in refs:
        assert (await b.reply(ref))["type"] == "history"


async def test_a_reply_holds_at_most_256_kib_of_items(login, name):
    a, b = await login(name("a")), await login(name("b"))
    for n in range(8):
        await a.say(f"@{name('b')}", f"{n}" + "y" * 60_000)
    page = await b.ask("sync_offline", {})
    assert page["has_more"]
    assert len(json.dumps(page["messages"], separators=(",", ":"))) <= 256 * 1024


async def test_a_backlog_of_499_and_a_live_message_acked_out_of_turn_lose_nothing(login, name):
    a = await login(name("a"))
    b = await login(name("b"))
    await b.close()
    keys = [await a.post(f"@{name('b')}", n) for n in range(499)]
    for key in keys:
        answer = await a.reply(key)
        while answer["type"] == "error":
            assert answer["data"]["code"] == "rate_limited"
            await asyncio.sleep(answer["data"].get("retry_after_ms", 500) / 1000)
            answer = await a.reply(await a.post(f"@{name('b')}", "resent", key))
    b = await login(name("b"))
    page = await b.ask("sync_offline", {"limit": 100})
    a = await login(name("a"), "fresh")  # with a burst of its own
    live = await a.say(f"@{name('b')}", "live")
    assert live["data"]["seq"] == 500
    await b.push("message", seq=500)
    await b.send("ack", {"conversation": f"@{name('a')}", "seq": 500})  # out of turn, a client's mistake
    seqs = [m["seq"] for m in page["messages"]]
    while page["has_more"]:
        page = await b.ask("sync_offline", {"page": page["page"]})
        seqs += [m["seq"] for m in page["messages"]]
    assert seqs[:499] == list(range(1, 500))


# --- heartbeat and timers: a server of its own -----------------------------------------------------


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    from server_process import ServerProcess

    hasty = ServerProcess(
        tmp_path_factory.mktemp("hasty"), heartbeat_interval_ms=1000, login_timeout_ms=700,
        max_unauthenticated_per_address=5, failed_logins_per_minute=3,
    ).start()  # fmt: skip
    yield hasty
    hasty.kill()
    assert "Traceback" not in hasty.log


async def test_a_login_never_sent_closes_4401(hasty):
    client = await Outsider.connect(hasty.url)
    assert (await client.closed())[0] == 4401


async def test_a_silent_connection_closes_4408_and_a_beating_one_stays(hasty, name):
    silent, alive = [await Outsider.connect(hasty.url) for _ in range(2)]
    answer = await silent.login(hasty.token(name("a")))
    assert answer["heartbeat_interval_ms"] == 1000
    await alive.login(hasty.token(name("b")))
    waiting = asyncio.ensure_future(silent.closed())
    while not waiting.done():
        await alive.barrier()
        await asyncio.wait([waiting], timeout=0.5)
    assert waiting.result()[0] == 4408
    await alive.barrier()
    await alive.close()


async def test_a_token_that_expires_closes_4401_with_an_error(hasty, name):
    client = await Outsider.connect(hasty.url)
    await client.login(hasty.token(name("a"), ttl_s=-28))  # with its leeway of 30 s: two more seconds
    waiting = asyncio.ensure_future(client.closed(timeout=20))
    while not waiting.done():
        if client.ws.close_code is None:
            try:
                await client.send("heartbeat", {})
            except Exception:
                break
        await asyncio.wait([waiting], timeout=0.5)
    assert (await waiting)[0] == 4401
    assert [e["data"]["code"] for e in client.unread if e["type"] == "error"] == ["token_expired"]


async def test_too_many_not_logged_in_get_503_at_the_handshake(hasty):
    from websockets.exceptions import InvalidStatus

    clients = [await Outsider.connect(hasty.url) for _ in range(5)]
    with pytest.raises(InvalidStatus) as refused:
        await Outsider.connect(hasty.url)
    assert refused.value.response.status_code == 503
    for client in clients:
        await client.close()


async def test_failed_logins_are_throttled_but_a_good_token_always_logs_in(hasty, name):
    codes = []
    for _ in range(5):
        client = await Outsider.connect(hasty.url)
        codes.append((await client.refused("login", {"token": "x", "device_id": "d"}))["code"])
        assert (await client.closed())[0] == 4401
    assert codes == ["bad_token"] * 3 + ["rate_limited"] * 2
    client = await Outsider.connect(hasty.url)
    await client.login(hasty.token(name("a")))
    await client.close()


async def test_the_rate_limit_answers_then_floods_close_4429(login, name):
    a = await login(name("a"))
    refs = [await a.send("presence", {"users": []}) for _ in range(400)]
    answers = [await a.reply(ref) for ref in refs]
    limited = [e for e in answers if e["type"] == "error"]
    assert limited
    assert {e["data"]["code"] for e in limited} == {"rate_limited"}
    assert limited[0]["data"]["retry"] == "backoff"
    await a.barrier()


async def test_acks_and_heartbeats_are_not_counted(login, name):
    a = await login(name("a"))
    for _ in range(300):
        await a.send("ack", {"acks": {}})
    for _ in range(100):
        await a.send("heartbeat", {}, "h")
    await a.barrier()
    assert {e["type"] for e in a.unread} == {"heartbeat"}
