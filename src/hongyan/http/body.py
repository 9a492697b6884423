"""What a request brings: its JSON object, read within a size and a time."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from hongyan.errors import WireError, refused
from hongyan.http.problem import UnreadBody

MAX_BODY = 16 * 1024
BODY_TIMEOUT_S = 10.0
_DRAIN_BYTES = 1024 * 1024
_DRAIN_S = 2.0
_TOO_LARGE = WireError("too_large", f"a body has {MAX_BODY} bytes at most")


async def json_object(request: Request, timeout_s: float = BODY_TIMEOUT_S) -> dict[str, Any]:
    """The body, whatever `Content-Type` says. Raises Refused `too_large`, `malformed`."""
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request)
    except TimeoutError:
        text = f"the body did not arrive within {timeout_s:g} s"
        raise UnreadBody(WireError("malformed", text)) from None
    except ClientDisconnect:
        raise refused("malformed", "the body broke off") from None
    try:
        value = json.loads(body.decode(), parse_constant=_no_json)
    except (ValueError, RecursionError):
        raise refused("malformed", "the body is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise refused("malformed", "the body is not an object")
    return value


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    too_large = declared.isascii() and declared.isdigit() and int(declared) > MAX_BODY
    if too_large:
        if "expect" not in request.headers:  # who asks first gets the answer instead of "100 Continue"
            await _drain(request)
        raise UnreadBody(_TOO_LARGE)
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            if more:
                await _drain(request)
            raise UnreadBody(_TOO_LARGE)
    return bytes(body)


async def _drain(request: Request) -> None:
    """Read on for a while: closing on unread bytes resets the connection, and the reset can overtake
    the answer."""
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_S):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        pass


def _no_json(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity, which Python's json would take
