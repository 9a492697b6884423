"""Errors are values that tell a client what to do (protocol.md, "Error codes")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Retry(StrEnum):
    """What a client does after an error whose code it may not know."""

    NEVER = "never"
    BACKOFF = "backoff"
    AFTER_SYNC = "after_sync"


# code -> retry; the whole vocabulary of protocol version 1, in the order of the contract.
RETRY: dict[str, Retry] = {
    "malformed": Retry.NEVER,
    "unknown_type": Retry.NEVER,
    "invalid_field": Retry.NEVER,
    "too_large": Retry.NEVER,
    "unauthenticated": Retry.NEVER,
    "invalid_state": Retry.NEVER,
    "bad_token": Retry.NEVER,
    "token_expired": Retry.NEVER,
    "unknown_user": Retry.NEVER,
    "unknown_group": Retry.NEVER,
    "not_member": Retry.NEVER,
    "forbidden": Retry.NEVER,
    "already_exists": Retry.NEVER,
    "group_full": Retry.NEVER,
    "limit_exceeded": Retry.NEVER,
    "rate_limited": Retry.BACKOFF,
    "busy": Retry.BACKOFF,
    "unavailable": Retry.BACKOFF,
    "internal": Retry.BACKOFF,
}


@dataclass(frozen=True, slots=True)
class WireError:
    """One `error` as it goes to a client.

    `text` is for people and is never parsed; `field` is the dotted path of the field at fault
    (`data.to`); `retry` None means the code's own (`RETRY`); `retry_after_ms` is a hint.
    """

    code: str
    text: str
    field: str | None = None
    retry_after_ms: int | None = None
    retry_override: Retry | None = None

    @property
    def retry(self) -> Retry:
        return self.retry_override or RETRY[self.code]


class Refused(Exception):
    """A request was refused. Carries the `WireError` that answers it."""

    def __init__(self, error: WireError) -> None:
        super().__init__(f"{error.code}: {error.text}")
        self.error = error


def refused(code: str, text: str, field: str | None = None, retry_after_ms: int | None = None) -> Refused:
    """Short for `Refused(WireError(...))`."""
    return Refused(WireError(code, text, field, retry_after_ms))


class DataDirectoryError(Exception):
    """The data directory is damaged, foreign, or in use by another server. Nothing was overwritten."""


class Unavailable(Exception):
    """Durable storage refused a write for now (a full disk): nothing of the batch may be acknowledged."""
