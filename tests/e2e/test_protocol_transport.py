"""protocol.md, "Transport" and "Envelope"."""

from __future__ import annotations

import asyncio
import json
import re

import msgspec
import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from outsider import JSON, MSGPACK, Outsider

pytestmark = pytest.mark.slow


async def status_of(url, offered=None):
    with pytest.raises(InvalidStatus) as refused:
        async with ws_connect(url, subprotocols=offered, compression=None, proxy=None):
            pass
    return refused.value.response.status_code


async def test_another_path_is_404(server):
    assert await status_of(server.url.replace("/ws", "/other")) == 404


async def test_only_unknown_subprotocols_are_refused_with_400(server):
    assert await status_of(server.url, [Subprotocol("hongyan.v9.json"), Subprotocol("chat")]) == 400


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([JSON], JSON),
        ([MSGPACK], MSGPACK),
        (["x", MSGPACK, JSON], MSGPACK),
        ([JSON, MSGPACK], JSON),
        (None, None),
    ],
)
async def test_the_first_known_subprotocol_is_chosen(server, offered, chosen):
    names = None if offered is None else [Subprotocol(name) for name in offered]
    async with ws_connect(server.url, subprotocols=names, compression=None, proxy=None) as ws:
        assert ws.subprotocol == chosen


async def test_without_a_subprotocol_json_is_spoken(login, name):
    client = await login(name("a"), subprotocol=None)
    await client.barrier()


async def test_deflate_is_off_by_default(server):
    async with ws_connect(server.url, compression="deflate", proxy=None) as ws:
        assert "Sec-WebSocket-Extensions" not in ws.response.headers


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_a_fragmented_message_is_one_envelope(login, name, subprotocol):
    client = await login(name("a"), subprotocol=subprotocol)
    whole = client.encode({"type": "heartbeat", "message_id": "frag"})
    await client.ws.send([whole[i : i + 3] for i in range(0, len(whole), 3)])
    assert (await client.reply("frag"))["type"] == "heartbeat"


async def test_the_limit_counts_fragments_together(login, name):
    client = await login(name("a"))
    answer = await client.ask("heartbeat")
    assert answer["ref"]
    await client.ws.send(["x" * 40_000, "x" * 40_000])
    assert (await client.closed())[0] == 1009


async def test_a_frame_at_the_limit_is_taken_and_one_above_closes_1009(login, name):
    client = await login(name("a"))
    frame = {"type": "heartbeat", "message_id": "big", "pad": ""}
    frame["pad"] = "x" * (65536 - len(json.dumps(frame)))
    assert len(json.dumps(frame)) == 65536
    await client.raw(json.dumps(frame))
    assert (await client.reply("big"))["type"] == "heartbeat"
    frame["pad"] += "x"
    await client.raw(json.dumps(frame))
    assert (await client.closed())[0] == 1009


MALFORMED_JSON = [
    "", "{", "nul", "[]", "3", '"text"', "null", "{}", '{"type": 1}', '{"type": null}',
    '{"type": "heartbeat", "data": []}', '{"type": "heartbeat", "data": 3}', '{"type": "heartbeat"} x',
    b'{"type": "heartbeat"}', "[" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("payload", MALFORMED_JSON)
async def test_malformed_json_is_answered_and_the_connection_stays(login, name, payload):
    client = await login(name("a"))
    await client.raw(payload)
    error = await client.push("error")
    assert error["data"]["code"] == "malformed"
    assert error["data"]["retry"] == "never"
    await client.barrier()


MALFORMED_MSGPACK = [
    b"",
    b"\xc1",
    b"\x81",
    b"\x90",
    b"\x03",
    b"\xc0",
    b"\x80",
    msgspec.msgpack.encode({"type": 1}),
    msgspec.msgpack.encode({"type": "heartbeat", "data": []}),
    msgspec.msgpack.encode({"type": "heartbeat"}) + b"\x00",
    b"\x81\xa4type\xa2\xff\xff",
    '{"type": "heartbeat"}',
    b"\x91" * 5000,
]


@pytest.mark.parametrize("payload", MALFORMED_MSGPACK)
async def test_malformed_msgpack_is_answered_and_the_connection_stays(login, name, payload):
    client = await login(name("a"), subprotocol=MSGPACK)
    await client.raw(payload)
    assert (await client.push("error"))["data"]["code"] == "malformed"
    await client.barrier()


async def test_the_tenth_malformed_in_a_minute_closes_1008(login, name):
    client = await login(name("a"))
    for _ in range(9):
        await client.raw("{")
    await client.barrier()
    assert [e["data"]["code"] for e in client.unread] == ["malformed"] * 9
    await client.raw("{")
    assert (await client.closed())[0] == 1008


async def test_text_that_is_not_utf8_closes_1007(login, name):
    client = await login(name("a"))
    await client.ws.send(b'{"type": "\xff\xfe"}', text=True)
    assert (await client.closed())[0] == 1007


async def test_utf8_split_across_fragments_is_fine(login, name):
    client = await login(name("a"))
    whole = json.dumps({"type": "heartbeat", "message_id": "鸿雁"}, ensure_ascii=False).encode()
    await client.ws.send([whole[i : i + 1] for i in range(len(whole))], text=True)
    assert (await client.reply("鸿雁"))["type"] == "heartbeat"


@pytest.mark.parametrize(
    "frame",
    [
        b"\xf1\x80\x00\x00\x00\x00",  # reserved bits
        b"\x83\x80\x00\x00\x00\x00",  # reserved opcode
        b"\x80\x80\x00\x00\x00\x00",  # continuation of nothing
        b"\x81\x00",  # not masked
        b"\x09\x80\x00\x00\x00\x00",  # fragmented ping
    ],
)
async def test_bad_framing_closes_1002(login, name, frame):
    client = await login(name("a"))
    client.ws.transport.write(frame)
    assert (await client.closed())[0] == 1002


async def test_server_envelopes_and_ref(login, name):
    client = await login(name("a"))
    beat = await client.request("heartbeat", {}, "my id")
    assert beat["data"] == {"ref": "my id"}
    assert re.fullmatch("[0-9]+", beat["message_id"])
    await client.raw('{"type":"heartbeat"}')
    answer = await client.receive()
    assert (answer["type"], answer["data"]) == ("heartbeat", {})


async def test_unknown_fields_are_ignored(login, name):
    client = await login(name("a"))
    await client.raw(
        '{"type":"heartbeat","message_id":"u","data":{"new":[1]},"other":{"x":null},"timestamp":1}'
    )
    assert (await client.reply("u"))["type"] == "heartbeat"


async def test_unknown_type(login, name):
    client = await login(name("a"))
    assert (await client.refused("no_such_type", {}))["code"] == "unknown_type"
    await client.barrier()


@pytest.mark.parametrize("bad", ["", "x" * 65, 7, None, ["a"]])
async def test_a_message_id_is_1_to_64_characters(login, name, bad):
    client = await login(name("a"))
    envelope = {"type": "send_message", "data": {"to": f"@{name('a')}", "content_type": "t", "content": 1}}
    await client.raw(json.dumps(envelope | {"message_id": bad}))
    error = (await client.until(lambda e: e["type"] == "error"))["data"]
    assert error["code"] == "invalid_field"
    assert error["field"] == "message_id"


async def test_send_message_needs_a_message_id(login, name):
    client = await login(name("a"))
    data = {"to": f"@{name('a')}", "content_type": "t", "content": 1}
    await client.raw(json.dumps({"type": "send_message", "data": data}))
    assert (await client.push("error"))["data"]["code"] == "invalid_field"


async def test_a_message_id_of_64_code_points_is_taken(login, name):
    client = await login(name("a"))
    ack = await client.say(f"@{name('a')}", 1, key="🦢" * 64)
    assert ack["data"]["ref"] == "🦢" * 64


async def test_a_connection_by_single_bytes(login, name):
    client = await login(name("a"))
    frame = b"\x81\x94\x00\x00\x00\x00" + b'{"type":"heartbeat"}'
    for byte in frame:
        client.ws.transport.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.receive())["type"] == "heartbeat"


async def test_many_connects_and_drops_leave_the_server_well(server, login, name):
    """Ten thousand; every other one is logged in when it drops."""
    for _ in range(200):
        clients = await asyncio.gather(*(Outsider.connect(server.url) for _ in range(50)))
        await asyncio.gather(
            *(client.login(server.token(f"drop{n}")) for n, client in enumerate(clients[::2]))
        )
        for client in clients:
            client.abort()
        await asyncio.gather(*(client.ws.wait_closed() for client in clients))
    await (await login(name("a"))).barrier()
