"""Who gets how many of the process's file descriptors."""

from __future__ import annotations

import pytest

from hongyan.config import ConfigError
from hongyan.descriptors import RESERVE, share


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
