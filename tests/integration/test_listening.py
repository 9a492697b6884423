"""Both listeners understand `host` alike."""

from __future__ import annotations

import asyncio
import socket

import pytest

from hongyan.accept import listen
from outsider import Outsider
from server_process import ServerProcess, ask


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
async def test_two_colons_are_every_interface_of_both_families(server_factory):
    server: ServerProcess = server_factory(host="::")
    for host in ("127.0.0.1", "[::1]"):
        client = await Outsider.connect(f"ws://{host}:{server.port}/ws")
        await client.login(server.token("a"))
        await client.close()
        assert (await asyncio.to_thread(ask, f"http://{host}:{server.http_port}/healthz"))[0] == 200
    assert f"ws://[::]:{server.port}/ws" in server.log


def test_a_free_port_is_the_same_for_every_address_of_a_name():
    sockets = listen("localhost", 0, "a test")
    assert len({made.getsockname()[1] for made in sockets}) == 1
    for made in sockets:
        made.close()


def test_a_port_taken_names_the_address():
    (taken,) = listen("127.0.0.1", 0, "a test")
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(OSError, match=f"a test on 127.0.0.1:{port}"):
        listen("127.0.0.1", port, "a test")
    taken.close()
