"""What is counted while a load runs, second by second. Latencies are in microseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hdrh.histogram import HdrHistogram

HIGHEST_US = 3_600_000_000  # an hour
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Interval:
    """One second of one process. Latencies are kept as they come, and folded once it is over: recording each in a
    histogram would cost more than sending the message."""

    __slots__ = ("ack_us", "counts", "push_us")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.ack_us: list[int] = []
        self.push_us: list[int] = []

    def summary(self) -> dict[str, dict[str, int] | dict[int, int]]:
        """Small enough to be sent: counts, and how often which latency was."""
        return {
            "counts": dict(self.counts),
            "ack_us": rounded(self.ack_us),
            "push_us": rounded(self.push_us),
        }


def rounded(values: list[int]) -> dict[int, int]:
    """value -> how often, to three digits (as exact as the histogram they go into)."""
    found: Counter[int] = Counter()
    for value, count in Counter(values).items():
        step = 1
        while value // step >= 10**DIGITS * 2:
            step *= 10
        found[value - value % step] += count
    return dict(found)


def histogram() -> HdrHistogram:
    """Gil Tene's, from 1 µs to an hour."""
    return HdrHistogram(1, HIGHEST_US, DIGITS)


def record(into: HdrHistogram, values: Mapping[int, int]) -> None:
    for value, count in values.items():
        into.record_value(min(max(value, 1), HIGHEST_US), count)


def figures_ms(of: HdrHistogram) -> dict[str, float]:
    """p50 … max in ms; nothing where nothing was recorded."""
    if not of.get_total_count():
        return {}
    found = {f"p{percentile:g}": of.get_value_at_percentile(percentile) / 1000 for percentile in PERCENTILES}
    found["max"] = of.get_max_value() / 1000
    return {name: round(value, 3) for name, value in found.items()}
