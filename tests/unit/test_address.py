"""Who sent a request: one rule for WebSockets and HTTP."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from hongyan.address import in_url, plain, sender

PROXIES = [ip_network("10.0.0.0/8"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("peer", "lines", "found"),
    [
        ("1.2.3.4", ["9.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9", "10.0.0.2"], "9.9.9.9"),
        ("10.0.0.1", ["9.9.9.9, , 10.0.0.3,"], "9.9.9.9"),
        ("::ffff:10.0.0.1", ["::ffff:9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["9.9.9.9, unknown"], "10.0.0.1"),
        ("::1", ["2001:DB8::0001"], "2001:db8::1"),
        ("", ["9.9.9.9"], ""),
    ],
)
def test_the_last_hop_no_proxy_stands_for(peer: str, lines: list[str], found: str) -> None:
    assert sender(peer, lines, PROXIES) == found


def test_without_proxies_nobody_is_believed() -> None:
    assert sender("127.0.0.1", ["9.9.9.9"], []) == "127.0.0.1"


def test_spelling() -> None:
    assert plain("::FFFF:1.2.3.4") == "1.2.3.4"
    assert (in_url("::"), in_url("localhost")) == ("[::]", "localhost")
