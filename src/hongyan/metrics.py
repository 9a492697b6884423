"""Counters that the hot path can afford: plain ints, turned into Prometheus samples at scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_GAUGES = {
    "connections": "open WebSocket connections",
    "max_connections": "the most connections at a time",
    "sessions": "logged-in connections",
    "outbound_bytes": "bytes that wait for connections to read them",
    "admitted_bytes": "bytes admitted and not yet durable",
    "cursors_held": "cursors that are safe in the journal and wait for their row",
    "store_pending_rows": "rows of the tail that are not written down",
    "store_pending_bytes": "bytes of the tail that are not written down",
    "journal_first_offset": "oldest record kept in the journal",
    "journal_last_offset": "newest durable record",
    "store_offset": "newest record in the view",
}
_COUNTERS = {
    "requests": "requests received",
    "messages_accepted": "messages made durable and numbered",
    "messages_duplicate": "sends answered as duplicates",
    "messages_rejected": "sends refused by the fold",
    "acks_sent": "acknowledgements sent to senders",
    "pushes": "messages pushed to connections",
    "delivery_acks": "acknowledgements received from devices",
    "batches": "batches committed",
    "batch_records": "records committed",
    "journal_failures": "appends the journal refused",
    "busy_refusals": "requests refused with busy",
    "slow_consumers": "connections closed with 4430",
    "heartbeat_timeouts": "connections closed with 4408",
    "login_timeouts": "connections closed with 4401 for no login in time",
    "rate_limited": "requests refused with rate_limited",
    "floods": "connections closed with 4429",
    "malformed": "malformed messages",
    "logins": "logins that succeeded",
    "logins_failed": "logins refused",
    "logins_postponed": "logins told to come back later: too many at a time",
    "logins_throttled": "logins refused for too many failures",
    "registrations": "users registered over HTTP",
    "password_logins": "logins over HTTP that succeeded",
    "password_logins_failed": "logins over HTTP with a wrong password or of an unknown user",
    "password_logins_throttled": "logins over HTTP refused for too many failures",
    "replaced": "connections closed with 4409",
    "handshakes_refused": "handshakes refused",
    "connections_refused": "connections closed before a word: too many, or too many that have not logged in",
    "store_flushes": "writes of the view",
    "store_flushed_rows": "rows written into the view",
    "store_flush_failures": "writes of the view that failed and were tried again",
}
_HISTOGRAMS = {
    "journal_append_seconds": "time to make a batch durable",
    "ack_seconds": "time from admitting a send to its acknowledgement, the oldest's for each batch",
    "loop_lag_seconds": "how late the event loop runs a timer",
}
# Seconds: from one fsync on a good disk to the ten within which every send is answered.
_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

__all__ = ["CONTENT_TYPE", "Counters", "Figures", "Histogram", "Tally", "exposition", "figures"]


class Histogram:
    """Counts in fixed buckets; `observe` costs one binary search. Values in seconds."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float] = _BOUNDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value` `count` times (the messages of a batch share one latency)."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.sum += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus has them: (upper bound, how many values up to it)."""
        total, result = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            result.append((bound, float(total)))
        return result


@dataclass(slots=True)
class Counters:
    """One attribute for each sample; `errors` by code, `closes` by the code of our close frame (an answer to
    the peer's has the peer's; "other": one that only the peer knows), `limit_hits` by the setting that is the limit."""

    connections: int = 0
    max_connections: int = 0
    sessions: int = 0
    outbound_bytes: int = 0
    admitted_bytes: int = 0
    cursors_held: int = 0
    store_pending_rows: int = 0
    store_pending_bytes: int = 0
    journal_first_offset: int = 0
    journal_last_offset: int = 0
    store_offset: int = 0
    requests: int = 0
    messages_accepted: int = 0
    messages_duplicate: int = 0
    messages_rejected: int = 0
    acks_sent: int = 0
    pushes: int = 0
    delivery_acks: int = 0
    batches: int = 0
    batch_records: int = 0
    journal_failures: int = 0
    busy_refusals: int = 0
    slow_consumers: int = 0
    heartbeat_timeouts: int = 0
    login_timeouts: int = 0
    rate_limited: int = 0
    floods: int = 0
    malformed: int = 0
    logins: int = 0
    logins_failed: int = 0
    logins_postponed: int = 0
    logins_throttled: int = 0
    registrations: int = 0
    password_logins: int = 0
    password_logins_failed: int = 0
    password_logins_throttled: int = 0
    replaced: int = 0
    handshakes_refused: int = 0
    connections_refused: int = 0
    store_flushes: int = 0
    store_flushed_rows: int = 0
    store_flush_failures: int = 0
    journal_append_seconds: Histogram = field(default_factory=Histogram)
    ack_seconds: Histogram = field(default_factory=Histogram)
    loop_lag_seconds: Histogram = field(default_factory=Histogram)
    errors: dict[str, int] = field(default_factory=dict)
    closes: dict[str, int] = field(default_factory=dict)
    limit_hits: dict[str, int] = field(default_factory=dict)

    def hit(self, limit: str) -> None:
        """Count that the setting `limit` was reached."""
        self.limit_hits[limit] = self.limit_hits.get(limit, 0) + 1


Figures = dict[str, int | dict[str, int]]


def figures(counters: Counters) -> Figures:
    """What another process needs to add them to its own (no histograms: gateways have none)."""
    return {
        each.name: value for each in fields(counters)
        if isinstance(value := getattr(counters, each.name), int | dict)
    }  # fmt: skip


class Tally:
    """One process's counters and those that others report, by the number of the process. What one that is gone has
    counted stays in the sum; what it held does not."""

    def __init__(self, own: Counters) -> None:
        self._own = own
        self._reported: dict[int, Figures] = {}
        self._gone = Counters()

    def report(self, process: int, reported: Figures) -> None:
        self._reported[process] = reported

    def gone(self, process: int) -> None:
        last = self._reported.pop(process, {})
        _add(self._gone, {name: value for name, value in last.items() if name not in _GAUGES})

    def total(self) -> Counters:
        total = replace(self._own, errors={}, closes={}, limit_hits={})
        _add(total, {name: value for name, value in figures(self._own).items() if isinstance(value, dict)})
        for each in (figures(self._gone), *self._reported.values()):
            _add(total, each)
        return total


def _add(to: Counters, reported: Figures) -> None:
    for name, value in reported.items():
        if isinstance(value, int):
            setattr(to, name, getattr(to, name) + value)
        else:
            counts: dict[str, int] = getattr(to, name)
            for label, count in value.items():
                counts[label] = counts.get(label, 0) + count


class _Samples(Collector):
    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"hongyan_{name}", text, getattr(self._counters, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"hongyan_{name}", text, getattr(self._counters, name))
        for name, text in _HISTOGRAMS.items():
            histogram: Histogram = getattr(self._counters, name)
            yield HistogramMetricFamily(f"hongyan_{name}", text, histogram.buckets(), histogram.sum)
        for name, label, text in (
            ("errors", "code", "errors sent"),
            ("closes", "code", "WebSocket connections closed"),
            ("limit_hits", "limit", "limits reached"),
        ):
            family = CounterMetricFamily(f"hongyan_{name}", text, labels=[label])
            for key, value in getattr(self._counters, name).items():
                family.add_metric([key], value)
            yield family


def exposition(counters: Counters) -> bytes:
    """The text of `/metrics`, with the process's own figures."""
    registry = CollectorRegistry()
    registry.register(_Samples(counters))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry)
