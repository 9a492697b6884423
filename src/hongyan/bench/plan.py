"""What a run is to do: one for the command, a part of it for each process. Plain values that can be pickled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from urllib.parse import urlsplit

# One address has some 28,000 ports for outgoing connections, and a process 20,000 descriptors at most here and there.
CONNECTIONS_A_PROCESS = 15_000
LOOPBACK = frozenset({"127.0.0.1", "localhost"})


@dataclass(frozen=True)
class Plan:
    """`first` and `count`: the connections of this process, of `connections` in all; `tokens` are theirs."""

    scenario: str
    url: str
    connections: int
    duration_s: float
    warmup_s: float
    prefix: str  # of the users' names: a run's own, so that every conversation begins at seq 1
    seed: int
    in_flight: int = 1
    rate: float = 0.0  # a second in all; 0: as fast as the window allows
    members: int = 0  # of a group
    messages: int = 0  # to each who is away
    size: int = 50  # characters of a message
    process: int = 0
    processes: int = 1
    first: int = 0
    count: int = 0
    tokens: list[str] = field(default_factory=list, repr=False)
    users: list[str] = field(
        default_factory=list, repr=False
    )  # by index, where tokens were given; else made of `prefix`

    first_ref: int = 0  # message_ids count from here: given users may have sent the same in an earlier run

    def user(self, index: int) -> str:
        return self.users[index] if self.users else f"{self.prefix}{index}"

    @property
    def source(self) -> str | None:
        """The address to connect from: to this machine's own, another for each process."""
        return f"127.0.0.{2 + self.process % 250}" if urlsplit(self.url).hostname in LOOPBACK else None

    def parts(self, processes: int, tokens: list[str]) -> list[Plan]:
        """The plan of each process."""
        bounds = [self.connections * n // processes for n in range(processes + 1)]
        return [
            replace(
                self,
                process=n,
                processes=processes,
                first=low,
                count=high - low,
                tokens=tokens[low:high],
                rate=self.rate * (high - low) / self.connections,
            )
            for n, (low, high) in enumerate(pairwise(bounds))
        ]
