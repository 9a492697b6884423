"""Which messages to hand on, what to ask for, what to acknowledge. Pure: no I/O, no clock.

A conversation's *base* is the seq up to which this device needs nothing. Where it starts is learned, never
guessed: the first item that a sync gives of a conversation lies right behind the server's cursor; and once a
sync is complete, the first push (or first ack of an own send) of a conversation that it did not name does,
because a login is registered for pushes before its sync reads the store (protocol.md, "Cursors and sync").
So a push whose predecessors were acknowledged by an earlier process is no gap.

A full queue does not stop the reading of the socket, or a slow application could never see the ack of a
send it waits for. Pushes past the limit are let go, and read again with `history` when there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hongyan.client.models import Message

PAGE = 200
MAX_MAP = (
    1000  # entries of one `ack` or `cursors`; the rest goes with the next, or comes twice and is dropped
)
Ready = tuple["Conversation", Message]


@dataclass(slots=True, eq=False)
class Conversation:
    """`received`: no hole below, None while the base is unknown. `high`: highest seq known to exist.
    `first`: lowest seq seen live on this connection while the base is unknown. `own`: places of our sends.
    `waiting`: handed to `ready` and not yet taken by the application; `taken`: the last it took."""

    address: str
    received: int | None = None
    high: int = 0
    first: int | None = None
    ahead: dict[int, Message] = field(default_factory=dict)
    own: set[int] = field(default_factory=set)
    waiting: int = 0
    taken: int = 0
    acked: int = 0

    def ackable(self) -> int:
        return self.taken if self.waiting else self.received or 0


@dataclass(frozen=True, slots=True)
class Read:
    """A request to send now; exactly one is under way at a time."""

    type: str
    data: dict[str, Any]


class Inbox:
    """`capacity`: messages queued for the application; as many again may wait behind a hole.
    `is_mine(key)`: whether this client is still sending a message under that key."""

    def __init__(self, capacity: int, is_mine: Callable[[str], bool]) -> None:
        self._capacity = capacity
        self._is_mine = is_mine
        self._conversations: dict[str, Conversation] = {}
        self._ready: deque[Ready] = deque()
        self._ahead = 0
        self._dirty: set[str] = set()
        self._acked_here: set[str] = set()
        self._holes: set[str] = set()
        self._sync_wanted = False
        self._page: str | None = None
        self._settled = False  # a sync of this connection is complete
        self._reading: Read | None = None
        self._hole_high = 0

    # the connection

    def connected(self) -> None:
        """Logged in: a sync is due."""
        self._sync_wanted, self._page = True, None

    def lost(self) -> None:
        """What waited behind a hole comes again by the next sync; acks may not have arrived and go again."""
        self._settled, self._reading, self._page, self._sync_wanted = False, None, None, False
        self._holes.clear()
        self._ahead = 0
        for address, conv in list(self._conversations.items()):
            conv.ahead.clear()
            conv.first = None
            conv.high = conv.received or 0
            if conv.received is None and not conv.own:
                del self._conversations[address]
        for address in self._acked_here & self._conversations.keys():
            self._conversations[address].acked = 0
            self._mark(self._conversations[address])
        self._acked_here.clear()

    def resync(self) -> None:
        """The server cannot rule out that a push was missed."""
        self._sync_wanted = True

    # what comes in

    def push(self, message: Message) -> None:
        conv, seq = self._conversation(message.conversation), message.seq
        if (conv.received is not None and seq <= conv.received) or seq in conv.ahead:
            return
        conv.high = max(conv.high, seq)
        if message.key is not None and self._is_mine(message.key):
            self._own(conv, seq, live=True)
            return
        if conv.received is None and not self._settled:
            conv.first = seq if conv.first is None else min(conv.first, seq)
        elif conv.received is None:
            conv.received = conv.taken = conv.acked = seq - 1
            self._settle(conv)
            if conv.received >= seq:
                return
        if conv.received is not None and seq == conv.received + 1:
            if len(self._ready) < self._capacity:
                self._hand_on(conv, message)
        elif self._ahead < self._capacity and seq not in conv.own:
            conv.ahead[seq] = message
            self._ahead += 1
        self._advance(conv)

    def acknowledged(self, address: str, seq: int, duplicate: bool) -> None:
        """An own send has its place. A duplicate's place may lie anywhere, so no base is learned from it."""
        conv = self._conversation(address)
        if conv.received is not None and seq <= conv.received:
            return
        if not duplicate or conv.received is not None:
            conv.high = max(conv.high, seq)
        self._own(conv, seq, live=not duplicate)

    def left(self, address: str) -> None:
        """No longer a member: nothing more comes, and a later joining starts afresh."""
        conv = self._conversations.pop(address, None)
        if conv is not None:
            self._ahead -= len(conv.ahead)
        for names in (self._dirty, self._acked_here, self._holes):
            names.discard(address)

    # reading: sync, then holes

    def next_read(self) -> Read | None:
        """What to ask now, or None: one is under way, nothing is missing, or there is no room for it."""
        room = self._capacity - len(self._ready)
        if self._reading is not None or room < min(PAGE, self._capacity) // 2:
            return None
        limit = max(1, min(PAGE, room))
        if self._page is not None:
            self._reading = Read("sync_offline", {"page": self._page, "limit": limit})
        elif self._sync_wanted:
            self._sync_wanted = False
            ahead = (
                c for c in self._conversations.values() if c.received is not None and c.received > c.acked
            )
            cursors = {c.address: c.received for c, _ in zip(ahead, range(MAX_MAP), strict=False)}
            self._reading = Read("sync_offline", {"limit": limit} | ({"cursors": cursors} if cursors else {}))
        elif self._settled and self._holes:
            conv = self._conversations[next(iter(self._holes))]
            self._hole_high = conv.high
            data = {"conversation": conv.address, "after": conv.received, "limit": limit}
            self._reading = Read("history", data)
        return self._reading  # None was checked above: it is a new one, if any

    def reply(self, data: dict[str, Any]) -> None:
        """The answer to the read under way."""
        read, self._reading = self._reading, None
        if read is None:
            return
        messages = [Message.from_item(item) for item in data["messages"]]
        for message in messages:
            self._item(message)
        if read.type == "history":
            self._after_hole(read, messages)
        elif data["has_more"]:
            self._page = data["page"]
        else:
            self._page, self._settled = None, True
            for conv in self._conversations.values():
                self._settle(conv)

    def read_failed(self, code: str, retry: str) -> None:
        """The read under way was refused. A page that is no longer known starts the sync again."""
        read, self._reading = self._reading, None
        if read is None:
            return
        if read.type == "sync_offline":
            if retry != "backoff" or "page" not in read.data:
                self._page, self._sync_wanted = None, True
        elif retry == "never":  # no member any more, or no such user
            self.left(read.data["conversation"])

    # the application

    def take(self) -> Ready | None:
        """The next message, to be given back to `done` once the application has it."""
        return self._ready.popleft() if self._ready else None

    def done(self, ready: Ready) -> None:
        conv, message = ready
        conv.waiting -= 1
        conv.taken = message.seq
        self._mark(conv)

    def acks(self) -> dict[str, int]:
        """What to acknowledge now (at most MAX_MAP entries; ask again while `has_acks`)."""
        acks: dict[str, int] = {}
        while self._dirty and len(acks) < MAX_MAP:
            address = self._dirty.pop()
            conv = self._conversations[address]
            acks[address] = conv.acked = conv.ackable()
        self._acked_here |= acks.keys()
        return acks

    @property
    def has_acks(self) -> bool:
        return bool(self._dirty)

    @property
    def complete(self) -> bool:
        """A sync of this connection is complete and no hole is known."""
        return self._settled and not self._sync_wanted and self._page is None and not self._holes

    def __len__(self) -> int:
        """Messages held, queued for the application or behind a hole."""
        return len(self._ready) + self._ahead

    # inside

    def _conversation(self, address: str) -> Conversation:
        conv = self._conversations.get(address)
        if conv is None:
            conv = self._conversations[address] = Conversation(address)
        return conv

    def _item(self, message: Message) -> None:
        """An item of sync or history. Nothing below it is this device's: a jump is no hole here."""
        conv, seq = self._conversation(message.conversation), message.seq
        if conv.received is None:
            conv.received = conv.taken = conv.acked = seq - 1
        elif seq <= conv.received:
            return
        conv.high = max(conv.high, seq)
        self._skip_to(conv, seq - 1)
        if conv.received < seq:
            if seq in conv.ahead:
                self._ahead -= 1
                del conv.ahead[seq]
            if seq in conv.own or (message.key is not None and self._is_mine(message.key)):
                conv.own.add(seq)
            else:
                self._hand_on(conv, message)
        self._advance(conv)

    def _own(self, conv: Conversation, seq: int, live: bool) -> None:
        if seq in conv.ahead:
            self._ahead -= 1
            del conv.ahead[seq]
        conv.own.add(seq)
        if conv.received is None and live:
            conv.first = seq if conv.first is None else min(conv.first, seq)
            if self._settled:
                self._settle(conv)
        self._advance(conv)

    def _settle(self, conv: Conversation) -> None:
        """After a complete sync the first live seq of a conversation it did not name tells the base."""
        if conv.received is None and conv.first is not None:
            conv.received = conv.taken = conv.acked = conv.first - 1
        self._advance(conv)

    def _skip_to(self, conv: Conversation, base: int) -> None:
        """Move the base up to `base`, handing on what is held below it."""
        assert conv.received is not None
        if base <= conv.received:
            return
        for seq in sorted(seq for seq in conv.ahead if seq <= base):
            self._ahead -= 1
            self._hand_on(conv, conv.ahead.pop(seq))
        conv.received = base

    def _hand_on(self, conv: Conversation, message: Message) -> None:
        conv.received = message.seq
        conv.waiting += 1
        if conv.waiting == 1:
            conv.taken = message.seq - 1
        self._ready.append((conv, message))

    def _advance(self, conv: Conversation) -> None:
        if conv.received is None:
            return
        while True:
            following = conv.received + 1
            if following in conv.own:
                conv.own.discard(following)
                conv.received = following
            elif following in conv.ahead:
                self._ahead -= 1
                self._hand_on(conv, conv.ahead.pop(following))
            else:
                break
        if conv.own:
            conv.own = {seq for seq in conv.own if seq > following}
        if conv.high > conv.received:
            self._holes.add(conv.address)
        else:
            self._holes.discard(conv.address)
        self._mark(conv)

    def _mark(self, conv: Conversation) -> None:
        if conv.ackable() > conv.acked and self._conversations.get(conv.address) is conv:
            self._dirty.add(conv.address)

    def _after_hole(self, read: Read, messages: Sequence[Message]) -> None:
        """No message after the hole's edge is visible to this user: it is no hole (`first_seq`)."""
        conv = self._conversations.get(read.data["conversation"])
        if conv is None or messages or conv.received is None or conv.received != read.data["after"]:
            return
        known = [*conv.ahead, *(seq for seq in conv.own if seq > conv.received)]
        self._skip_to(conv, min(known) - 1 if known else max(self._hole_high, conv.received))
        self._advance(conv)
