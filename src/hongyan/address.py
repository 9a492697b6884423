"""Network addresses as people and proxies write them: one spelling each, and who really sent a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

Networks = Sequence[IPv4Network | IPv6Network]


@lru_cache(1024)  # a connection's is asked for three times, 25 µs each, and many come from one
def plain(address: str) -> str:
    """One spelling an address; an IPv4 address stays one on a socket for both. Raises ValueError."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def peer(address: str) -> str:
    """The same for what the operating system names as the peer; other kinds of names stay as they are."""
    try:
        return plain(address)
    except ValueError:
        return address


def trusted(address: str, proxies: Networks) -> bool:
    """Whether `address` is one of the configured proxies. Raises ValueError where it is no address."""
    return bool(proxies) and any(ip_address(plain(address)) in network for network in proxies)


def sender(address: str, forwarded_for: Iterable[str], proxies: Networks) -> str:
    """The peer; or, behind configured proxies, the last of the `X-Forwarded-For` lines that none of them
    stands for: what is left of it anybody can have written."""
    try:
        address = plain(address)
        if not trusted(address, proxies):
            return address
        hops = [hop.strip() for hop in ",".join(forwarded_for).split(",") if hop.strip()]
        while hops and trusted(address, proxies):
            address = plain(hops.pop())
    except ValueError:  # a hop that is no address: whoever sent it is as far as we can see
        pass
    return address


def in_url(host: str) -> str:
    """`host` as a URL has it (RFC 3986 section 3.2.2)."""
    return f"[{host}]" if ":" in host else host
