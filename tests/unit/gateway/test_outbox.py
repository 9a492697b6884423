from __future__ import annotations

from hongyan.gateway import frames
from hongyan.gateway.outbox import MAX_FRAME_BYTES, Outbox


class Transport:
    """Takes `takes` bytes and buffers the rest, as a socket with a slow reader does."""

    def __init__(self, takes=0):
        self.takes = takes
        self.writes = []

    def set_write_buffer_limits(self, high, low):
        self.limits = high, low

    def get_write_buffer_size(self):
        return max(sum(map(len, self.writes)) - self.takes, 0)

    def write(self, data):
        self.writes.append(data)


def outbox(limit, takes=0):
    transport = Transport(takes)
    return Outbox(transport, True, limit), transport


def framed(*payloads):
    return b"".join(frames.encode(frames.BINARY, each) for each in payloads)


def test_a_batch_is_one_write():
    box, transport = outbox(1000)
    box.payloads += [b"a", b"b", b"c"]
    assert box.flush()
    assert box.flush()
    assert transport.writes == [framed(b"a", b"b", b"c")]


def test_past_the_limit_nothing_is_written():
    box, transport = outbox(100)
    assert box.write(b"x" * 60)
    assert not box.write(b"y" * 41)
    assert transport.writes == [framed(b"x" * 60)]


def test_a_reader_that_takes_everything_is_never_slow():
    box, _ = outbox(100, takes=1 << 30)
    assert all(box.write(b"x" * 90) for _ in range(100))


def test_what_is_held_follows_the_answer():
    box, transport = outbox(100)
    box.hold()
    assert box.write(b"1")
    assert box.write(b"2")
    assert transport.writes == []
    assert box.write_ahead(b"pong")
    assert box.release(b"answer")
    assert transport.writes == [b"pong", framed(b"answer", b"1", b"2")]


def test_what_is_held_is_bounded():
    box, _ = outbox(100)
    box.hold()
    assert box.write(b"x" * 90)
    assert not box.write(b"x")


def test_room_is_for_a_reply_of_the_greatest_size():
    box, transport = outbox(MAX_FRAME_BYTES + 100)
    assert box.has_room
    transport.write(b"x" * 100)
    assert box.has_room
    transport.write(b"x")
    assert not box.has_room
    assert transport.limits == (100, 100)


def test_what_is_held_is_counted_once_and_joined_at_the_end():
    box, _ = outbox(200)
    box.hold()
    for _ in range(10):
        assert box.write(b"0123456789")
    assert len(box.payloads) == 10
    assert box.backlog == 200  # heads are counted as the longest
    assert not box.write(b"x")
