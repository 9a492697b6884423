"""The calls beside sending: groups, history, conversations, presence. All answers are the wire's `data`."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from hongyan.client.models import Message


class Calls(abc.ABC):
    """Each raises RequestRefused, RequestTimeout or Closed."""

    @abc.abstractmethod
    async def request(
        self, type_: str, data: dict[str, Any], *, repeatable: bool = True
    ) -> dict[str, Any]: ...

    async def create_group(
        self, group: str | None = None, name: str = "", join: str = "open"
    ) -> dict[str, Any]:
        """`group` None: the server picks an id; raises ConnectionLost then if the connection goes meanwhile,
        because a repeat would create another group."""
        data: dict[str, Any] = {"name": name, "join": join} | ({"group": group} if group is not None else {})
        return await self.request("create_group", data, repeatable=group is not None)

    async def join_group(self, group: str) -> dict[str, Any]:
        return await self.request("join_group", {"group": group})

    async def leave_group(self, group: str) -> dict[str, Any]:
        return await self.request("leave_group", {"group": group})

    async def invite(self, group: str, users: Sequence[str]) -> dict[str, Any]:
        """`users`: addresses, at most 100."""
        return await self.request("invite", {"group": group, "users": list(users)})

    async def history(
        self, conversation: str, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> tuple[list[Message], bool]:
        """Ascending, and whether there are more in that direction. Both bounds exclusive; at most 500."""
        data: dict[str, Any] = {"conversation": conversation, "limit": limit}
        data |= {"before": before} if before is not None else {}
        data |= {"after": after} if after is not None else {}
        answer = await self.request("history", data)
        return [Message.from_item(item) for item in answer["messages"]], bool(answer["has_more"])

    async def conversations(self, limit: int = 50, page: str | None = None) -> dict[str, Any]:
        return await self.request("conversations", {"limit": limit} | ({"page": page} if page else {}))

    async def presence(
        self, users: Sequence[str], subscribe: bool | None = None
    ) -> dict[str, dict[str, Any]]:
        """States by address. Subscriptions are renewed after a reconnect; changes come by `events()`."""
        data: dict[str, Any] = {"users": list(users)}
        if subscribe is not None:
            data["subscribe"] = subscribe
        answer = await self.request("presence", data)
        self._subscribed(users, subscribe)
        states: dict[str, dict[str, Any]] = answer["states"]
        return states

    @abc.abstractmethod
    def _subscribed(self, users: Sequence[str], subscribe: bool | None) -> None: ...
