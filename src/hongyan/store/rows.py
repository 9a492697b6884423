"""What a unit of changes is on disk: MessagePack rows, a run of one conversation's messages being one row."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rocksdict import WriteBatch

from hongyan.protocol.state import Conversation, Membership, Message, Sent, User, opened
from hongyan.store import keys
from hongyan.store.tail import Unit

# One row of messages holds no more: reading one message (a conversation's newest) decodes a whole row.
RUN_BYTES = 8 * 1024
RUN_MESSAGES = 64

# Most conversations are short, and a row that says where a key went costs as much as the message's own. So the first
# messages of a conversation have none: they are found by looking at them (`RocksReads.find`).
FIRST = 64
# A direct chat's row says no more than its newest message does. It is written when the chat passes a multiple of this:
# who reads it goes on from there, run by run.
STRIDE = 4

_encode = msgspec.msgpack.Encoder().encode
decode_run = msgspec.msgpack.Decoder(list[Message]).decode
decode_conversation = msgspec.msgpack.Decoder(Conversation).decode
decode_membership = msgspec.msgpack.Decoder(Membership).decode
decode_user = msgspec.msgpack.Decoder(User).decode
decode_ids = msgspec.msgpack.Decoder(list[int]).decode
decode_sent = msgspec.msgpack.Decoder(Sent).decode


def write_batch(unit: Unit) -> WriteBatch:
    """The rows of `unit`, with its offset."""
    batch = WriteBatch(raw_mode=True)
    put, encode, number = batch.put, _encode, keys.number
    for name, messages in unit.messages.items():
        first, last = messages[0].seq, messages[-1].seq
        if first == last:  # as most are: straight on (`keys.run`, without a call)
            put(f"m{name}\0".encode() + number(first), encode(messages))
        else:
            for run in _runs(messages):
                put(keys.run(name, run[0].seq), encode(run))
        if last >= STRIDE and name[0] != "#" and last // STRIDE > (first - 1) // STRIDE:
            put(keys.conversation(name), encode(unit.conversations[name]))
        if last > FIRST:
            for message in messages:
                if message.seq > FIRST:
                    sent = (message.seq, message.id, message.at)  # as a Sent
                    put(keys.sent(message.sender, name, message.key), encode(sent))
    for key, conversation in unit.conversations.items():
        if key[0] == "#":
            put(keys.conversation(key), encode(conversation))
    for user, found in unit.users.items():
        put(keys.user(user), encode(found))
    since: int | None = None
    raw = b""
    for name, at in unit.directs.items():
        a, _, b = name.partition("|")  # the row of `a` is said by the messages (`RocksReads._memberships_of`)
        if at != since:  # many begin in one millisecond
            since, raw = at, encode(opened(at))
        if a != b:
            put(f"p{b}\0{name}".encode(), raw)  # (`keys.membership`, without a call)
    for (user, key), membership in unit.memberships.items():  # over those of `directs`
        if membership is None:
            batch.delete(keys.membership(user, key))
        else:
            put(keys.membership(user, key), encode(membership))
    for group, places in unit.members.items():
        prefix = keys.members(group)
        for position, member in places.items():
            if member is None:
                batch.delete(prefix + keys.number(position))
            else:
                put(prefix + keys.number(position), member.encode())
    for offset, ids in unit.unstored.items():
        put(keys.unstored(offset), encode(ids))
    put(keys.OFFSET, keys.number(unit.offset))
    return batch


def _runs(messages: list[Message]) -> Iterator[list[Message]]:
    """Cut where a row would pass RUN_BYTES of content or RUN_MESSAGES, and behind the FIRST, which are looked at."""
    begin = size = 0
    for place, message in enumerate(messages):
        size += len(message.content)
        full = size > RUN_BYTES or place - begin >= RUN_MESSAGES or message.seq == FIRST + 1
        if full and place > begin:
            yield messages[begin:place]
            begin, size = place, len(message.content)
    yield messages[begin:]
