"""What came of the newest records, told again: to a gateway that was not told, because the engine before this one or
the link between them ended (docs/design/workers.md)."""

from __future__ import annotations

from hongyan.journal.base import Journal
from hongyan.link.base import Gap
from hongyan.protocol import records
from hongyan.protocol.state import Message
from hongyan.store.base import Store

MAX_RECORDS = 50_000  # some half a second, for which nobody is served
MAX_TOPICS = 100_000  # that are named as concerned: a record may invite a hundred


def gap_after(journal: Journal, store: Store, offset: int) -> Gap | None:
    """From the record behind `offset` up to what the store has. (The journal may have more: it is told in its turn.)
    None: the journal cannot say, or it would be too much.

    Whether a send made a message, the store notes; which one, its duplicate look-up says. (It says the newest of a
    key. Of one that was stored twice within the gap the first is not found: then all of the conversation come back.)
    What came of a change of membership nobody notes: those concerned come back, the others hear that they may have
    missed something.
    """
    upto = store.offset
    if not journal.first - 1 <= offset <= upto or upto - offset > MAX_RECORDS:
        return None
    messages: list[Message] = []
    away: set[str] = set()
    resync: set[str] = set()
    for entry in journal.read(offset) if offset < upto else ():
        if entry.first > upto:
            break
        unstored = frozenset(store.unstored(entry.last))
        for at, record in enumerate(entry.records, entry.first):
            if at <= offset:
                continue
            if isinstance(record, records.Send):
                if record.id not in unstored:
                    message = _message(store, record)
                    if message is not None:
                        messages.append(message)
                    else:
                        name = record.conversation
                        away.update([name] if name[0] == "#" else [f"@{user}" for user in name.split("|")])
            elif isinstance(record, records.CreateGroup | records.Join | records.Leave | records.Invite):
                resync.add(record.group)
                away.add(f"@{record.user}")
                if isinstance(record, records.Invite):
                    away.update(f"@{user}" for user in record.users)
        if len(away) > MAX_TOPICS:
            return None
    return Gap(messages, away, resync)


def _message(store: Store, send: records.Send) -> Message | None:
    """What was stored for `send`."""
    sent = store.find(send.sender, send.conversation, send.key)
    if sent is None or sent.id != send.id:
        return None
    return Message(
        send.conversation, sent.seq, sent.id, sent.at, send.sender, send.key, send.content_type, send.content
    )
