"""The engine's Unix socket: in the data directory where its path fits, for nobody else to open."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

from hongyan.link.router import Router

NAME = "link"
MAX_PATH_BYTES = 100  # sun_path has 108 on Linux, 104 elsewhere


def fits(path: Path) -> bool:
    """Whether a Unix socket can have this path."""
    return len(os.fsencode(path)) <= MAX_PATH_BYTES


class LinkListener:
    """Takes gateways for `router`. The directory of `path` is the caller's alone (its lock says so)."""

    def __init__(self, path: Path, router: Router) -> None:
        self._path = path
        self._router = router
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Raises OSError."""
        self._path.unlink(missing_ok=True)  # of an engine that was killed
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            self._server = await asyncio.get_running_loop().create_unix_server(
                self._router.accept, sock=listening, backlog=128
            )
        except BaseException:
            listening.close()
            raise

    async def close(self, patience_s: float) -> None:
        """Wait until the gateways have gone by themselves, `patience_s` at most; then cut them. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._router.empty.wait()
        server.close()
        self._path.unlink(missing_ok=True)
        await self._router.close()
