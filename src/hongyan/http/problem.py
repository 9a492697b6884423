"""Errors over HTTP: `application/problem+json` (RFC 9457) with the codes of the wire protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hongyan.errors import Refused, WireError

log = structlog.get_logger("hongyan.http")

Endpoint = Callable[[Request], Awaitable[Response]]
_STATUS = {
    "malformed": 400, "invalid_field": 400, "bad_token": 401, "already_exists": 409, "too_large": 413,
    "rate_limited": 429, "internal": 500, "busy": 503, "unavailable": 503,
}  # fmt: skip
_INTERNAL = WireError("internal", "the server failed; try again")


class UnreadBody(Refused):
    """Refused with a body that was not read to its end: no other request can follow on the connection."""


def problem(error: WireError) -> Response:
    """The answer that says `error`."""
    status = _STATUS.get(error.code, 400)
    body: dict[str, Any] = {"detail": error.text, "code": error.code}
    headers = {}
    if error.field is not None:
        body["field"] = error.field
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 §15.5.2 has a 401 name a scheme
    return _response(status, body, headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, or not with this method (with `Allow`)."""
    assert isinstance(error, HTTPException)
    return _response(error.status_code, {"detail": str(error.detail)}, dict(error.headers or {}))


def answering(endpoint: Endpoint) -> Endpoint:
    """`endpoint`, whose refusals and failures are answers too. No failure reaches uvicorn, which would
    log it a second time, with what was on the stack."""

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refused as refusal:
            response = problem(refusal.error)
            if isinstance(refusal, UnreadBody):
                response.headers["Connection"] = "close"
            return response
        except Exception:
            log.exception("a request failed", path=request.url.path)
            return problem(_INTERNAL)

    return answer


def _response(status: int, more: dict[str, Any], headers: dict[str, str]) -> Response:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, **more}
    headers["Cache-Control"] = "no-store"
    return JSONResponse(body, status, headers, media_type="application/problem+json")
