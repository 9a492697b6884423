"""What one connection has heard of its conversations: each seq once, in order, without a gap."""

from __future__ import annotations

from typing import NamedTuple

MOST = 20  # breaches that are kept; more are only counted


class Breach(NamedTuple):
    """A promise that did not hold."""

    user: str
    conversation: str
    expected: int
    got: int

    def __str__(self) -> str:
        what = "again or out of order" if self.got < self.expected else "after a gap"
        return f"{self.user} got seq {self.got} of {self.conversation} {what}: {self.expected} was next"


class Ledger:
    """Acknowledgements and pushes of a connection come in `seq` order (protocol.md, "Order, gaps, recovery"), so one
    number a conversation is enough to check that each comes once.

    Between a reconnect and the end of its sync (`catching_up`) pushes may be ahead, and what is known may come again.
    """

    def __init__(self, user: str) -> None:
        self.user = user
        self.last: dict[bytes, int] = {}
        self.ahead: dict[bytes, set[int]] = {}
        self.catching_up = False
        self.breaches: list[Breach] = []
        self.broken = 0

    def take(self, conversation: bytes, seq: int) -> bool:
        """Note one. False: it was known already, or ahead of what is known."""
        expected = self.last.get(conversation, 0) + 1
        if seq == expected:
            self.last[conversation] = seq
            if self.ahead:
                self._join(conversation)
            return True
        if not self.catching_up:
            self._breach(conversation, expected, seq)
            self.last[conversation] = max(seq, expected - 1)
            return seq > expected
        if seq > expected:
            self.ahead.setdefault(conversation, set()).add(seq)
        return False

    def start(self, conversation: bytes, seq: int) -> None:
        """What lies up to `seq` is not this member's to see."""
        self.last[conversation] = seq

    def caught_up(self) -> None:
        """The sync is complete: what is ahead still lacks something."""
        self.catching_up = False
        for conversation, seqs in self.ahead.items():
            self._breach(conversation, self.last.get(conversation, 0) + 1, min(seqs))
            self.last[conversation] = max(seqs)
        self.ahead = {}

    def _join(self, conversation: bytes) -> None:
        """What was ahead of this conversation, as far as it follows now."""
        seqs = self.ahead.get(conversation)
        while seqs and self.last[conversation] + 1 in seqs:
            self.last[conversation] += 1
            seqs.remove(self.last[conversation])
        if seqs is not None and not seqs:
            del self.ahead[conversation]

    def _breach(self, conversation: bytes, expected: int, got: int) -> None:
        self.broken += 1
        if len(self.breaches) < MOST:
            self.breaches.append(Breach(self.user, conversation.decode(), expected, got))
