"""Keeps ids reserved ahead of the clock, from a thread: no answer ever waits for that write."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import structlog

from hongyan.ids import Snowflake

EVERY_S = 1.0
_FULL = {errno.ENOSPC, errno.EDQUOT}

log = structlog.get_logger("hongyan")


class Reserve:
    """`save(mark)` may block and may fail. On a full disk it is tried again, while `snowflake` goes on with what
    is reserved; any other error goes to `fatal`."""

    def __init__(
        self, snowflake: Snowflake, save: Callable[[int], None], fatal: Callable[[BaseException], None]
    ) -> None:
        self._snowflake = snowflake
        self._save = save
        self._fatal = fatal
        self._failing = False

    async def renew(self) -> None:
        """Reserve more where little is left."""
        mark = self._snowflake.to_reserve()
        if not mark:
            return
        try:
            await asyncio.to_thread(self._save, mark)
        except OSError as error:
            if error.errno not in _FULL:
                self._fatal(error)
            elif not self._failing:
                log.warning("no room for the clock mark, it is tried again", error=str(error))
            self._failing = True
            return
        self._failing = False
        self._snowflake.extend(mark)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.renew()
