"""What can go wrong on the client's side. Everything derives from `ClientError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of everything the client raises."""


class Unreachable(ClientError):
    """No login within `connect_timeout` seconds. Nothing was sent."""


class ConnectionLost(ClientError):
    """The connection went before the answer came, and the request is not safe to repeat by itself."""


class RequestTimeout(ClientError, TimeoutError):
    """No answer to a request within its time; whether it was done is unknown."""


class Closed(ClientError):
    """The client is closed and stays closed. `code`: the WebSocket close code, None for an own `close()`."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class LoginRefused(Closed):
    """The token or device was refused (close code 4401); `error` is the server's error code, "" if unknown."""

    def __init__(self, text: str, error: str = "") -> None:
        super().__init__(text, 4401)
        self.error = error


class Kicked(Closed):
    """An administrator ended the session (4403)."""


class Replaced(Closed):
    """The same device logged in elsewhere (4409)."""


class RequestRefused(ClientError):
    """The server's `error` (protocol.md, "Error codes"). `code` is for programs, `text` for people."""

    def __init__(
        self, code: str, text: str, retry: str = "never", field: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.retry = retry
        self.field = field
        self.retry_after_ms = retry_after_ms

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> RequestRefused:
        """From the `data` of an `error` envelope."""
        after = data.get("retry_after_ms")
        return cls(
            str(data.get("code", "internal")), str(data.get("text", "")), str(data.get("retry", "never")),
            data.get("field"), after if isinstance(after, int) and after >= 0 else None,
        )  # fmt: skip


class TooLarge(ClientError):
    """The message is above the server's `max_frame_bytes`. It was not stored; split it."""
