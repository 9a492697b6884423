"""Connections are admitted before anything is spent on them, and trouble of the machine is waited out."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from hongyan import accept
from hongyan.accept import Acceptor, listen


class Greeter(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b"hello")


class Broken:
    """A listening socket whose first `accept` fails."""

    def __init__(self, inner: socket.socket, code: int) -> None:
        self.inner, self.code = inner, code

    def accept(self) -> Any:
        if code := self.code:
            self.code = 0
            raise OSError(code, "on purpose")
        return self.inner.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def greeting(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            return await reader.read(5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_who_is_not_admitted_is_closed_at_once() -> None:
    asked: list[str] = []

    def admit(address: str) -> bool:
        asked.append(address)
        return len(acceptor.open) < 2

    acceptor = Acceptor(listen("127.0.0.1", 0, "a test"), lambda address: Greeter(), admit)
    acceptor.start()
    assert [await greeting(acceptor.port) for _ in range(3)] == [b"hello", b"hello", b""]
    assert asked == ["127.0.0.1"] * 3
    acceptor.gone(next(iter(acceptor.open)))
    assert await greeting(acceptor.port) == b"hello"
    acceptor.close()
    acceptor.close()
    for greeter in acceptor.open:
        greeter.transport.abort()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENETDOWN])
async def test_trouble_of_the_machine_passes(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "_PAUSE_S", 0.01)
    (listening,) = listen("127.0.0.1", 0, "a test")
    broken: Any = Broken(listening, code)
    acceptor = Acceptor([broken], lambda address: Greeter(), lambda address: True)
    acceptor.start()
    assert await greeting(acceptor.port) == b"hello"
    acceptor.close()
    for greeter in acceptor.open:
        greeter.transport.abort()
