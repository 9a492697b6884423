"""What HTTP needs of the engine."""

from __future__ import annotations

from typing import Protocol


class Accounts(Protocol):
    """Users with passwords. Ids are bare and valid; both calls come from the event loop."""

    async def register(self, user: str, password_hash: str) -> None:
        """Create a user. Durable when it returns.

        Raises Refused: `already_exists` (however the user was created), `busy` (nothing stored),
        `unavailable` (outcome unknown).
        """

    def password_hash(self, user: str) -> str | None:
        """The hash given at registration; "" for a user without a password, None for no such user."""
