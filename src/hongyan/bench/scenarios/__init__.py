"""The loads, by name. Each is run by every process for its connections, and returns what is to be compared between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from hongyan.bench.scenarios.connect import connect
from hongyan.bench.scenarios.direct import direct
from hongyan.bench.scenarios.group import group
from hongyan.bench.scenarios.idle import idle
from hongyan.bench.scenarios.mixed import mixed
from hongyan.bench.scenarios.offline import offline
from hongyan.bench.worker import Worker

SCENARIOS: dict[str, Callable[[Worker], Awaitable[dict[str, Any]]]] = {
    "direct": direct,
    "group": group,
    "connect": connect,
    "idle": idle,
    "offline": offline,
    "mixed": mixed,
}
