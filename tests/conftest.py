"""Shared fixtures: servers as real processes, and clients that know only the wire contract."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outsider import JSON, Outsider
from server_process import ServerProcess

StartServer = Callable[..., ServerProcess]
_numbers = itertools.count(1)


@pytest.fixture
def server_factory(tmp_path: Path) -> Iterator[StartServer]:
    """`server_factory(**settings)` starts a server of its own on a fresh directory."""
    running: list[ServerProcess] = []

    def start(root: Path | None = None, started: bool = True, **settings: Any) -> ServerProcess:
        root = root or tmp_path / f"server-{len(running)}"
        root.mkdir(parents=True, exist_ok=True)
        server = ServerProcess(root, **settings)
        running.append(server)
        return server.start() if started else server

    yield start
    for server in running:
        server.kill()


# Also with several processes; all are in the long run.
WITH_WORKERS = {"test_protocol_core", "test_protocol_groups"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames and not hasattr(metafunc.module, "server"):  # (which has its own)
        several = Path(metafunc.module.__file__).stem in WITH_WORKERS or os.environ.get("HONGYAN_TEST_LONG")
        metafunc.parametrize("server", [1, 2] if several else [1], indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    """One server a module, of so many workers, with limits per address out of the way. No test of it may
    leave a traceback."""
    shared = ServerProcess(
        tmp_path_factory.mktemp("server"), workers=request.param,
        presence_offline_delay_ms=300, failed_logins_per_minute=10_000, registrations_per_minute=10_000,
    ).start()  # fmt: skip
    yield shared
    assert shared.process is not None
    assert shared.process.poll() is None, f"the server died:\n{shared.log[-4000:]}"
    shared.kill()
    assert "Traceback" not in shared.log, shared.log[-4000:]


@pytest.fixture
def name() -> Callable[[str], str]:
    """`name("alice")` is a user or group id nobody has used yet in this run, the same within a test."""
    number = next(_numbers)
    return lambda base: f"{base}-{number}"


@pytest.fixture
async def login(server: ServerProcess) -> AsyncIterator[Callable[..., Any]]:
    """`await login("alice", device="d1")`: a logged-in client on the module's server."""
    opened: list[Outsider] = []

    async def log_in(
        user: str, device: str = "d1", subprotocol: str | None = JSON, **options: Any
    ) -> Outsider:
        client = await Outsider.connect(server.url, subprotocol, **options)
        opened.append(client)
        await client.login(server.token(user), device)
        return client

    yield log_in
    for client in opened:
        await client.close()


@pytest.fixture
async def connect(server: ServerProcess) -> AsyncIterator[Callable[..., Any]]:
    """`await connect()`: a client that has not logged in."""
    opened: list[Outsider] = []

    async def open_(subprotocol: str | None = JSON, **options: Any) -> Outsider:
        client = await Outsider.connect(server.url, subprotocol, **options)
        opened.append(client)
        return client

    yield open_
    for client in opened:
        await client.close()
