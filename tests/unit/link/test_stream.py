"""Frames over a real socket pair: whole or not at all, whatever the bytes and their portions."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from structlog.testing import capture_logs

from hongyan.link import messages as m
from hongyan.link.stream import MAX_FRAME_BYTES, PAUSE_BYTES, Stream, encode


class End:
    """A gateway's end of a link; the test holds the other."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.frames = 0
        self.lost = asyncio.Event()
        self.news = asyncio.Event()
        self.stream = Stream(m.decode_to_gateway, self._take, self.lost.set, self.news.set)
        ours, self.other = socket.socketpair()
        self._ours = ours

    async def open(self) -> End:
        self.other.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self.stream, sock=self._ours)
        return self

    def _take(self, received: list[Any]) -> None:
        self.taken += received
        self.frames += 1
        self.news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.taken) < count:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def end():
    made = await End().open()
    yield made
    made.stream.abort()
    made.other.close()
    await made.lost.wait()


def frame(*messages: Any) -> bytes:
    body = b"\xdd" + len(messages).to_bytes(4, "big") + b"".join(map(encode, messages))
    return len(body).to_bytes(4, "big") + body


async def sent(end: End, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(end.other, data)


TOLD = [m.Told(1), m.Replace(2), m.Refusal([(3, "r")], m.WireError("busy", "x")), m.Told(2**40)]


async def test_any_portions(end: End) -> None:
    data = frame(*TOLD) + frame(TOLD[0])
    for size in range(1, len(data) + 1):
        for at in range(0, len(data), size):
            await sent(end, data[at : at + size])
            await asyncio.sleep(0)
    await end.until(5 * len(data))
    assert end.taken == [*TOLD, TOLD[0]] * len(data)


async def test_a_turn_is_one_write(end: End) -> None:
    end.stream.put(m.Told(1))
    end.stream.put(m.Told(2))
    await asyncio.sleep(0)
    data = await asyncio.get_running_loop().sock_recv(end.other, 1000)
    assert data == frame(m.Told(1), m.Told(2))


async def test_what_cannot_be_encoded_costs_nobody_else_anything(end: End) -> None:
    for n in range(3):
        with pytest.raises(OverflowError):
            end.stream.put(m.Ack(1, "@a" * 1000, 2**70))
        end.stream.put(m.Ack(n, "@a", n))
    end.stream.flush()
    async with asyncio.timeout(5):
        data = await asyncio.get_running_loop().sock_recv(end.other, 65536)
    assert data == frame(*[m.Ack(n, "@a", n) for n in range(3)])


async def test_what_was_encoded_once_reads_the_same(end: End) -> None:
    end.stream.put_encoded(encode(TOLD[2]))
    end.stream.flush()
    assert await asyncio.get_running_loop().sock_recv(end.other, 1000) == frame(TOLD[2])


@pytest.mark.parametrize(
    "bad",
    [
        b"\0\0\0\0" + b"x" * 20, b"\0\0\0\x05hello", b"\0\0\0\x02\x91\x90", b"\0\0\0\x03\x91\x91\x63",
        frame(TOLD[0])[:4] + b"\xff" * (len(frame(TOLD[0])) - 4), (MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"x",
        frame(m.Send(1, "r", "@a", "t", b"", False)),
    ],
)  # fmt: skip
async def test_bad_bytes_cut_the_link(end: End, bad: bytes) -> None:
    with capture_logs() as logs:
        await sent(end, frame(TOLD[0]) + bad)
        async with asyncio.timeout(5):
            await end.lost.wait()
    assert end.taken == [TOLD[0]], "what came before counts"
    assert any(line["event"] == "cut a link" for line in logs)


async def test_an_end_at_any_byte_tells_nothing_of_a_part() -> None:
    data = frame(*TOLD)
    for length in range(len(data) + 1):
        end = await End().open()
        await sent(end, data[:length])
        end.other.close()
        async with asyncio.timeout(5):
            await end.lost.wait()
        assert end.taken == (TOLD if length == len(data) else [])
        end.stream.put(m.Told(1))  # into the void
        end.stream.flush()


async def test_a_slow_peer_is_noticed_and_so_is_its_recovery(end: End) -> None:
    message = m.Refusal([(1, "x" * 100_000)], m.WireError("busy", "x"))
    while not end.stream.behind:
        end.stream.put(message)
        end.stream.flush()
    assert PAUSE_BYTES < end.stream.backlog < PAUSE_BYTES + 1_000_000
    end.news.clear()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while end.stream.behind:
            await loop.sock_recv(end.other, 1 << 20)
    assert end.news.is_set()
