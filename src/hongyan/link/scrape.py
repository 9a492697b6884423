"""The counters of all processes: gateways report them twice a second, and are asked for them at a scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from hongyan.link.messages import Scrape
from hongyan.link.stream import Stream
from hongyan.metrics import Counters, Figures, Tally

SCRAPE_S = 1.0  # past it the last report counts


class Scraper:
    """By the gateways' numbers. `own` are this process's counters."""

    def __init__(self, own: Counters) -> None:
        self._tally = Tally(own)
        self._asked: dict[int, asyncio.Future[None]] = {}

    def report(self, number: int, figures: Figures) -> None:
        self._tally.report(number, figures)
        self._answered(number)

    def gone(self, number: int) -> None:
        self._tally.gone(number)
        self._answered(number)

    def _answered(self, number: int) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked.set_result(None)

    async def total(self, streams: Mapping[int, Stream]) -> Counters:
        """As of now, but for gateways that do not answer in time."""
        for number, stream in streams.items():
            if number not in self._asked:
                self._asked[number] = asyncio.get_running_loop().create_future()
                stream.put(Scrape())
        if self._asked:
            await asyncio.wait(tuple(self._asked.values()), timeout=SCRAPE_S)
        return self._tally.total()
