"""From a payload to a request, or to the exact error that answers it.

The hot path is one tagged-union decode and the type's check. What it does not take goes to `diagnose`,
which may be slow but never raises anything except `BadRequest`, whatever the bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any, Never

import msgspec

from hongyan.errors import Refused, WireError
from hongyan.protocol import json_scan, msgpack_scan
from hongyan.protocol.content import FIELD, check_json, from_msgpack
from hongyan.protocol.json_scan import shallow
from hongyan.protocol.names import match_address
from hongyan.protocol.requests import (
    CHECKS,
    GOOD_CONTENT_TYPES,
    MAX_MESSAGE_ID,
    SEQ_CEILING,
    TYPES,
    Ack,
    AnyRequest,
    BadRequest,
    Request,
    SendMessage,
)

_FOREIGN = object()  # an ext value, or a map that is no object: fits no field, and passes where none is read
_json_decode = msgspec.json.Decoder(AnyRequest).decode
_msgpack = msgspec.msgpack.Decoder(AnyRequest, ext_hook=lambda code, data: _FOREIGN)
_any_msgpack = msgspec.msgpack.Decoder(ext_hook=lambda code, data: _FOREIGN)

_PATH = re.compile(r"at `(?:key` in `)?\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTE, _BACKSLASH = b'"\\'  # as numbers: three times faster to look for
_KEEP = 70  # levels of JSON that a diagnosis looks at


def from_json(payload: bytes) -> Request:
    """`payload` is valid UTF-8. Raises BadRequest."""
    try:
        request: Request = _json_decode(payload)
    except Exception:  # RecursionError and UnicodeError among them: all are diagnosed
        return diagnose_json(payload)
    # The two that come with every message, where nothing about them needs a closer look:
    if type(request) is SendMessage:
        data = request.data
        content = bytes(data.content)
        if (
            content[0] == _QUOTE
            and _BACKSLASH not in content  # a plain string has nothing to check
            and data.content_type in GOOD_CONTENT_TYPES
            and match_address(data.to) is not None
        ):
            data.content = content
            return request
    elif type(request) is Ack:
        ack = request.data
        if ack.acks is None and ack.conversation and ack.seq is not None and ack.seq <= SEQ_CEILING:
            return request
    return _checked(request, check_json)


def from_message_pack(payload: bytes) -> Request:
    """Raises BadRequest."""
    try:
        _any_msgpack.decode(payload)  # strings are UTF-8 everywhere, also where the types do not look
        request: Request = _msgpack.decode(payload)
    except Exception:
        return diagnose_msgpack(payload)
    return _checked(request, None)


def _checked(request: Request, check: Any) -> Request:
    try:
        if type(request) is SendMessage:
            data = request.data
            content = bytes(data.content)
            if check is None:
                content = from_msgpack(content)
            elif content[0] != _QUOTE or b"\\" in content:  # a plain string has nothing to check
                check(content)
            data.content = content
        verify = CHECKS.get(type(request))
        if verify is not None:
            verify(request.data)  # type: ignore[attr-defined]
    except Refused as refusal:
        raise BadRequest(refusal.error, request.message_id, _kind(request)) from None
    except (msgspec.DecodeError, TypeError):  # well-formed, but a map as a key or an impossible timestamp
        error = WireError("invalid_field", "content holds what JSON has not", FIELD)
        raise BadRequest(error, request.message_id, _kind(request)) from None
    return request


def _kind(request: Request) -> str:
    return str(type(request).__struct_config__.tag)


def diagnose_json(payload: bytes) -> Request:
    """Name what is wrong with a JSON payload; a request after all where nothing that is read is wrong."""
    text = payload.decode()
    try:
        value = json.loads(shallow(text, _KEEP), parse_constant=_no_constant, parse_int=_bounded_int)
    except (ValueError, RecursionError):
        _malformed("not JSON", None)
    content = None
    data = value.get("data") if isinstance(value, dict) and value.get("type") == "send_message" else None
    if isinstance(data, dict):
        content = json_scan.entries(json_scan.entries(text)["data"]).get("content")
    return _diagnose(value, None if content is None else content.encode(), check_json)


def diagnose_msgpack(payload: bytes) -> Request:
    """The same for MessagePack."""
    if not msgpack_scan.is_valid(payload):
        _malformed("not MessagePack", None)
    raw = msgpack_scan.entries(payload)
    if raw is None:
        _malformed("not an object", None)
    value = {name: _quiet(each) for name, each in raw.items()}
    content = None
    inner = msgpack_scan.entries(raw["data"]) if "data" in raw else None
    if inner is not None:
        content = inner.get("content")
        value["data"] = {name: _quiet(each) for name, each in inner.items()}
    return _diagnose(value, content, None)


def _diagnose(value: Any, content: bytes | None, check: Any) -> Request:
    """`content`: the raw bytes of a send's content, None where it has none."""
    if not isinstance(value, dict):
        _malformed("not an object", None)
    ref = _ref(value)
    kind = value.get("type")
    if not isinstance(kind, str):
        _malformed("no string type", ref)
    data = value.get("data", {})
    if not isinstance(data, dict):
        _malformed("data is no object", ref)
    wanted = TYPES.get(kind)
    if wanted is None:
        text = f"unknown type {kind[:64]!r}".encode("ascii", "replace").decode()
        raise BadRequest(WireError("unknown_type", text), ref, kind)
    if "message_id" in value and ref is None:
        text = f"a message_id is a string of 1 to {MAX_MESSAGE_ID} characters"
        raise BadRequest(WireError("invalid_field", text, "message_id"), None, kind)
    data = _clamped(data)
    if kind == "send_message" and content is not None:
        data["content"] = msgspec.Raw(content)
    fields = {"type": kind, "data": data} | ({"message_id": ref} if ref is not None else {})
    try:
        request: Request = msgspec.convert(fields, wanted)
    except msgspec.ValidationError as error:
        raise BadRequest(_field_error(str(error)), ref, kind) from None
    given = request.data  # type: ignore[attr-defined]
    for name in given.__struct_fields__:
        each = getattr(given, name)
        if isinstance(each, str) and _SURROGATE.search(each):  # could be neither stored nor sent
            wrong = WireError("invalid_field", "a lone surrogate is no character", f"data.{name}")
            raise BadRequest(wrong, ref, kind)
    return _checked(request, check)


def _field_error(text: str) -> WireError:
    found, missing = _PATH.search(text), _MISSING.search(text)
    path = re.split(r"[\[]", found[1], maxsplit=1)[0].rstrip(".") if found else ""
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
    return WireError("invalid_field", text.split(" - at ")[0], path or "data")


def _clamped(data: dict[str, Any]) -> dict[str, Any]:
    """Integers past 64 bits as the largest, one level of maps deep: a seq beyond the last is clamped. Without names that
    no field has: of those with a lone surrogate msgspec makes no text."""
    return {
        name: {key: _clamp(inner) for key, inner in each.items()}
        if isinstance(each, dict) and name in ("acks", "cursors") else _clamp(each)
        for name, each in data.items() if isinstance(name, str) and _SURROGATE.search(name) is None
    }  # fmt: skip


def _clamp(value: Any) -> Any:
    return SEQ_CEILING if type(value) is int and value > SEQ_CEILING else value


def _ref(value: dict[Any, Any]) -> str | None:
    ref = value.get("message_id")
    if isinstance(ref, str) and 1 <= len(ref) <= MAX_MESSAGE_ID and _SURROGATE.search(ref) is None:
        return ref
    return None


def _malformed(text: str, ref: str | None) -> Never:
    raise BadRequest(WireError("malformed", text), ref)


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _bounded_int(digits: str) -> int:
    return int(digits[:200])  # 5,000 digits would cost, and mean no more


def _quiet(raw: bytes) -> Any:
    try:
        return _any_msgpack.decode(raw)
    except Exception:
        return _FOREIGN
