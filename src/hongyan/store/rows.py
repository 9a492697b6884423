"""What a batch of changes is on disk: MessagePack rows, a run of one conversation's messages being one row."""

from __future__ import annotations

import msgspec
from rocksdict import WriteBatch

from hongyan.protocol.state import Changes, Conversation, Membership, Sent, User
from hongyan.store import keys

RUN_BYTES = 64 * 1024  # one row of messages: reading one message decodes no more than this

_encode = msgspec.msgpack.Encoder().encode
Row = tuple[int, int, int, str, str, str, bytes]
decode_run = msgspec.msgpack.Decoder(list[Row]).decode
decode_conversation = msgspec.msgpack.Decoder(Conversation).decode
decode_membership = msgspec.msgpack.Decoder(Membership).decode
decode_user = msgspec.msgpack.Decoder(User).decode
decode_sent = msgspec.msgpack.Decoder(Sent).decode


def write_batch(changes: Changes) -> WriteBatch:
    """The rows of `changes`, to be written as one unit."""
    batch = WriteBatch(raw_mode=True)
    put = batch.put
    runs: dict[str, list[list[Row]]] = {}
    sizes: dict[str, int] = {}
    for message in changes.messages:
        name, size = message.conversation, len(message.content)
        row = (
            message.seq,
            message.id,
            message.at,
            message.sender,
            message.key,
            message.content_type,
            message.content,
        )
        of = runs.get(name)
        if of is None:
            runs[name], sizes[name] = [[row]], size
        elif sizes[name] + size > RUN_BYTES:
            of.append([row])
            sizes[name] = size
        else:
            of[-1].append(row)
            sizes[name] += size
    for name, of in runs.items():
        prefix = keys.messages(name)
        for run in of:
            put(prefix + keys.number(run[0][0]), _encode(run))
    for at, sent in changes.sent.items():
        put(keys.sent(*at), _encode(sent))
    for key, conversation in changes.conversations.items():
        put(keys.conversation(key), _encode(conversation))
    for user, found in changes.users.items():
        put(keys.user(user), _encode(found))
    for (user, key), membership in changes.memberships.items():
        if membership is None:
            batch.delete(keys.memberships(user) + key.encode())
        else:
            put(keys.memberships(user) + key.encode(), _encode(membership))
    for (group, position), member in changes.members.items():
        if member is None:
            batch.delete(keys.members(group) + keys.number(position))
        else:
            put(keys.members(group) + keys.number(position), member.encode())
    return batch
