"""Sends that a gateway has passed on and that have no answer yet, in order. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hongyan.link.messages import Send

MAX_SENDS = 200_000
MAX_BYTES = 64 * 1024 * 1024
_OVERHEAD = 300  # bytes of one beside its content

Key = tuple[int, str]  # session, ref


class _Entry:
    __slots__ = ("at", "send")

    def __init__(self, send: Send, at: float) -> None:
        self.send = send
        self.at = at


class Held:
    """`now` is the owner's clock, in seconds, as coarse as it likes."""

    def __init__(self) -> None:
        self.now = 0.0
        self._entries: dict[Key, _Entry] = {}
        # A client that sends one `message_id` again before it is answered gets two answers.
        self._again: dict[Key, list[_Entry]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries) + sum(map(len, self._again.values()))

    @property
    def full(self) -> bool:
        """Past the limits nothing more is to be added."""
        return self._bytes > MAX_BYTES or len(self._entries) > MAX_SENDS

    def add(self, send: Send) -> None:
        key, entry = (send.session, send.ref), _Entry(send, self.now)
        self._bytes += len(send.content) + _OVERHEAD
        if key in self._entries:
            self._again.setdefault(key, []).append(entry)
        else:
            self._entries[key] = entry

    def get(self, session: int, ref: str) -> Send | None:
        """The oldest with that name."""
        entry = self._entries.get((session, ref))
        return entry.send if entry is not None else None

    def take(self, session: int, ref: str) -> bool:
        """The oldest with that name is answered. False: there is none."""
        key = (session, ref)
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._bytes -= len(entry.send.content) + _OVERHEAD
        if self._again and (later := self._again.get(key)):
            self._entries[key] = later.pop(0)
            if not later:
                del self._again[key]
        return True

    def take_before(self, at: float) -> list[Key]:
        """Those that have been held since before `at`, a (session, ref) each."""
        old = []
        for key, entry in self._entries.items():
            if entry.at >= at:
                break
            old.append(key)
        for key in old:
            self.take(*key)
        return old

    def sends(self) -> Iterator[Send]:
        """In the order in which they came (a repeated one behind the others: only its first counts)."""
        for entry in self._entries.values():
            yield entry.send
        for later in self._again.values():
            for entry in later:
                yield entry.send
