"""What the client hands to the application. Times are ms since the Unix epoch, server clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """A message as this user sees it. `conversation`: address (`@bob`, `#team`); `sender`: bare id;
    `content`: any JSON value; `message_id`: Snowflake as a decimal string; `key`: the sender's own
    message_id, only on the user's own messages (sent by another device or an earlier run)."""

    conversation: str
    sender: str
    seq: int
    content_type: str
    content: Any
    message_id: str
    timestamp: int
    key: str | None = None

    @property
    def own(self) -> bool:
        return self.key is not None

    @classmethod
    def from_item(cls, item: Mapping[str, Any]) -> Message:
        """From an item of `sync_offline` or `history`. Raises KeyError, TypeError or ValueError."""
        return cls.build(item, str(item["message_id"]), item["timestamp"])

    @classmethod
    def build(cls, data: Mapping[str, Any], message_id: str, timestamp: int) -> Message:
        seq = data["seq"]
        if type(seq) is not int or seq < 1:
            raise ValueError("seq")
        return cls(
            data["conversation"], data["from"], seq, data["content_type"], data["content"],
            message_id, timestamp, data.get("key"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ack:
    """A message of ours is durable. `key`: the message_id it was sent with; `message_id`: its Snowflake;
    `duplicate`: an earlier attempt had stored it already."""

    key: str
    conversation: str
    seq: int
    message_id: str
    timestamp: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Event:
    """Anything else worth knowing. `type`: "presence", "group_event", "connected" (`data`: the login's
    answer) or "disconnected" (`data`: `code`, `reason`, `retry_in_s`)."""

    type: str
    data: Mapping[str, Any]
