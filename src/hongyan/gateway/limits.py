"""What one peer may ask for: request rate, malformed messages, failed logins. Pure; times in seconds."""

from __future__ import annotations

FLOOD_S = 5.0  # above the rate for so long without pause: 4429
# The longest pause for what is served anyway: a send may be behind it, and is to be answered within ten seconds.
# What counts for more is read a buffer a second: still more slowly.
DEBT_S = 1.0
PAUSE_S = 1.0  # no refusal for so long is a pause
MALFORMED = 10  # the tenth within a minute closes
MINUTE_S = 60.0
ACKS_A_REQUEST = 20  # acknowledgements of one message that cost about as much as a message with one
QUIET_BYTES = 1024  # of a message that cannot be read count like one acknowledgement


class Rate:
    """GCRA, the leaky bucket as one number: the theoretical arrival time of the next request.

    `rate` a second (0: no limit), `burst` at once. A refused request does not count.
    """

    __slots__ = ("_step", "_tat", "_tolerance", "flooding_since", "refused_at")

    def __init__(self, rate: float, burst: int) -> None:
        self._step = 1.0 / rate if rate > 0 else 0.0
        self._tolerance = max(burst - 1, 0) * self._step
        self._tat = 0.0
        self.flooding_since = 0.0
        self.refused_at = -PAUSE_S

    def take(self, now: float) -> float:
        """0.0 where the request conforms (and count it), else the seconds until one would."""
        if not self._step:
            return 0.0
        tat = self._tat
        if tat < now:
            tat = now
        wait = tat - self._tolerance - now
        if wait > 1e-9:
            return wait
        self._tat = tat + self._step
        return 0.0

    def force(self, now: float, count: int = 1) -> float:
        """Count requests that are served anyway. Returns the seconds (`DEBT_S` at most) until the next would conform."""
        if not self._step:
            return 0.0
        tat = (self._tat if self._tat > now else now) + count * self._step
        most = now + self._tolerance + DEBT_S
        self._tat = tat if tat < most else most
        return max(self._tat - self._tolerance - now, 0.0)

    def floods(self, now: float) -> bool:
        """Note a refusal. True where the peer has been above the rate for `FLOOD_S` without pause."""
        if now - self.refused_at > PAUSE_S:
            self.flooding_since = now
        self.refused_at = now
        return now - self.flooding_since >= FLOOD_S


class Recent:
    """Events of the last minute, at most `limit` remembered."""

    __slots__ = ("_limit", "_times")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: list[float] = []

    def add(self, now: float) -> bool:
        """Count one. True where this makes `limit` within a minute."""
        self._times = [at for at in self._times if now - at < MINUTE_S]
        self._times.append(now)
        del self._times[: -self._limit]
        return len(self._times) >= self._limit

    def wait(self, now: float) -> float:
        """Seconds until fewer than `limit` lie within a minute; 0.0 where that holds now."""
        if len(self._times) < self._limit:
            return 0.0
        return max(MINUTE_S - (now - self._times[0]), 0.0)


class FailedLogins:
    """Failed logins an address. Bounded: past `max_addresses` the one that failed first is forgotten."""

    __slots__ = ("_addresses", "_limit", "_max_addresses")

    def __init__(self, a_minute: int, max_addresses: int = 20_000) -> None:
        self._limit = a_minute
        self._max_addresses = max_addresses
        self._addresses: dict[str, Recent] = {}

    def fail(self, address: str, now: float) -> float:
        """Count a failure. Returns 0.0, or the seconds for which failures are answered `rate_limited`
        (then this one is not counted: the throttle ends by itself)."""
        if self._limit <= 0:
            return 0.0
        recent = self._addresses.pop(address, None) or Recent(self._limit)
        self._addresses[address] = recent  # the newest failure goes to the end of the order
        if len(self._addresses) > self._max_addresses:
            del self._addresses[next(iter(self._addresses))]
        wait = recent.wait(now)
        if not wait:
            recent.add(now)
        return wait
