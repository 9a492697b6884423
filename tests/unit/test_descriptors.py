"""Who gets how many of the process's file descriptors."""

from __future__ import annotations

import pytest

from hongyan.config import ConfigError
from hongyan.descriptors import RESERVE, engine_share, gateway_share, share


@pytest.mark.parametrize("limit", [256, 1024, 4096, 20_000, 1 << 20])
def test_no_share_touches_the_reserve(limit: int) -> None:
    store, connections, http = share(limit)
    assert store + connections + http + RESERVE <= limit
    assert min(store, connections, http) > 0


def test_a_setting_within_the_room_is_taken() -> None:
    assert share(20_000, 5000).connections == 5000


@pytest.mark.parametrize(("limit", "wanted"), [(1024, 5000), (200, 0)])
def test_what_has_no_room_is_refused(limit: int, wanted: int) -> None:
    with pytest.raises(ConfigError, match=f"{limit} open files"):
        share(limit, wanted)


def test_shares_of_several_processes():
    assert engine_share(20_000) == (2048, 0, 1000)
    assert gateway_share(20_000) == 20_000 - RESERVE
    assert gateway_share(20_000, 500) == 500
    with pytest.raises(ConfigError, match="max_connections"):
        gateway_share(1000, 5000)
