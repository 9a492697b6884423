"""Whether and when to connect again (protocol.md, "Close codes"). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from hongyan.client.errors import Closed, Kicked, LoginRefused, Replaced

KICKED, REPLACED, NOT_LOGGED_IN, TOO_BIG = 4403, 4409, 4401, 1009
_HINT = re.compile(r"\bretry_after_ms=(\d{1,9})\b")
MAX_HINT_S = 300.0  # a hint is the server's wish; past this the client asks again anyway


def retry_hint(reason: str) -> float | None:
    """Seconds from `retry_after_ms=…` in a close reason, None where there is none."""
    found = _HINT.search(reason)
    return min(int(found[1]) / 1000, MAX_HINT_S) if found else None


def final(code: int, reason: str) -> Closed | None:
    """The error that ends the client for good after this close code, or None: connect again.

    4401 is not decided here: a new token may help (`login_refused`).
    """
    if code == KICKED:
        return Kicked(f"kicked by an administrator{_said(reason)}", code)
    if code == REPLACED:
        return Replaced(f"the same device logged in elsewhere{_said(reason)}", code)
    return None


def login_refused(error: str, text: str) -> LoginRefused:
    return LoginRefused(f"login refused: {error or 'no reason given'}{_said(text)}", error)


def _said(text: str) -> str:
    return f" ({text})" if text else ""


class Backoff:
    """Exponential with full jitter over the upper half: spreads out clients that lost the same server.

    `random` gives floats in [0, 1). Seconds.
    """

    def __init__(self, random: Callable[[], float], first: float = 0.25, most: float = 30.0) -> None:
        self._random = random
        self._first = first
        self._most = most
        self._next = first

    def delay(self, hint: float | None = None) -> float:
        """How long to wait now. A hint is the least; its jitter is small, the server has spread it already."""
        step, self._next = self._next, min(self._next * 2, self._most)
        if hint is not None:
            return hint + self._first * self._random()
        return step * (0.5 + 0.5 * self._random())

    def reset(self) -> None:
        """After a success: the next failure is a first one."""
        self._next = self._first
