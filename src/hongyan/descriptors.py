"""The process's file descriptors, shared out: what connections may use up, and what they may not.

A store that cannot open its next file is a store that has failed (RocksDB takes no write after that
until it is opened again), so the sockets of strangers must never reach its share.
"""

from __future__ import annotations

import resource
from typing import NamedTuple

from hongyan.config import ConfigError

# Journal, the store's logs and what it is writing, the loop's own, standard streams, a few to spare.
RESERVE = 128
LEAST_CONNECTIONS = 16
_LIMIT = 1 << 20  # where there is no limit at all
_STORE_FILES = (64, 2048)
_HTTP_CONNECTIONS = 1000


class Share(NamedTuple):
    """How many files the store keeps open, and how many connections there may be at a time."""

    store_files: int
    connections: int
    http_connections: int


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one. Returns what then holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _LIMIT if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return min(wanted, _LIMIT)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a limit below its hard one
        return soft
    return min(wanted, _LIMIT)


def share(limit: int, max_connections: int = 0) -> Share:
    """Share `limit` descriptors out; `max_connections` 0: as many as there is room for.

    Raises ConfigError where there is no room for as many, or for hardly any.
    """
    store, http = _store_files(limit), min(_HTTP_CONNECTIONS, limit // 10)
    return Share(store, _connections(limit - store - http, max_connections, limit), http)


def engine_share(limit: int) -> Share:
    """Of a process without a gateway."""
    return Share(_store_files(limit), 0, min(_HTTP_CONNECTIONS, limit // 10))


def gateway_share(limit: int, max_connections: int = 0) -> int:
    """The connections of a process that has nothing else. Raises ConfigError as `share`."""
    return _connections(limit, max_connections, limit)


def _store_files(limit: int) -> int:
    least, most = _STORE_FILES
    return max(least, min(most, limit // 4))


def _connections(rest: int, max_connections: int, limit: int) -> int:
    room = rest - RESERVE
    if room < max(LEAST_CONNECTIONS, max_connections):
        wanted = max_connections or LEAST_CONNECTIONS
        raise ConfigError(
            f"max_connections: {wanted} connections are more than the {max(room, 0)} that a limit of {limit} open "
            "files leaves room for: raise it (ulimit -n, LimitNOFILE=)"
        )
    return max_connections or room
