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
from hongyan.protocol.content import FIELD, MAX_DEPTH, check_json, depth, from_msgpack
from hongyan.protocol.msgpack_scan import entries
from hongyan.protocol.requests import (
    CHECKS,
    MAX_MESSAGE_ID,
    SEQ_CEILING,
    TYPES,
    AnyRequest,
    BadRequest,
    Request,
    SendMessage,
)

_json = msgspec.json.Decoder(AnyRequest)
_msgpack = msgspec.msgpack.Decoder(AnyRequest, ext_hook=lambda code, data: None)
_any_msgpack = msgspec.msgpack.Decoder(ext_hook=lambda code, data: None)

_PATH = re.compile(r"at `(?:key in )?\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOO_DEEP = WireError("invalid_field", f"content is nested deeper than {MAX_DEPTH}", FIELD)
_SURROGATE_FOUND = WireError("invalid_field", "content holds a lone surrogate", FIELD)
_KEEP = 70  # levels of JSON that a diagnosis looks at


def from_json(payload: bytes) -> Request:
    """`payload` is valid UTF-8. Raises BadRequest."""
    try:
        request: Request = _json.decode(payload)
    except Exception:  # RecursionError and UnicodeError among them: all are diagnosed
        return diagnose_json(payload)
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
            else:
                check(content)
            data.content = content
        verify = CHECKS.get(type(request))
        if verify is not None:
            verify(request.data)  # type: ignore[attr-defined]
    except Refused as refusal:
        raise BadRequest(refusal.error, request.message_id, _kind(request)) from None
    return request


def _kind(request: Request) -> str:
    return str(type(request).__struct_config__.tag)


def diagnose_json(payload: bytes) -> Request:
    """Name what is wrong with a JSON payload; a request after all where only its integers were huge."""
    text = payload.decode()
    shallow = _shallow(text)
    try:
        value = json.loads(shallow, parse_constant=_no_constant, parse_int=_bounded_int)
    except (ValueError, RecursionError):
        _malformed("not JSON", None)
    if isinstance(value, dict) and value.get("type") == "send_message":
        ref, data = _ref(value), value.get("data")
        if ref is not None and isinstance(data, dict) and "content" in data:
            if len(shallow) != len(text) and depth(payload) > MAX_DEPTH + 2:
                raise BadRequest(_TOO_DEEP, ref, "send_message")
            if _has_surrogate(data["content"]):
                raise BadRequest(_SURROGATE_FOUND, ref, "send_message")
    return _diagnose(value)


def diagnose_msgpack(payload: bytes) -> Request:
    """The same for MessagePack."""
    try:
        return _diagnose(_any_msgpack.decode(payload))
    except RecursionError:
        top = entries(payload)
        ref = top.get("message_id")
        data = entries(top["data"]) if "data" in top else {}
        name = _ref({"message_id": _quiet(ref)}) if ref is not None else None
        if name is not None and "content" in data:
            raise BadRequest(
                WireError("invalid_field", f"nested deeper than {MAX_DEPTH}", FIELD), name
            ) from None
        _malformed("nested too deeply", name)
    except (msgspec.DecodeError, UnicodeError, ValueError, TypeError):
        _malformed("not MessagePack", None)


def _diagnose(value: Any) -> Request:
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
        raise BadRequest(
            WireError(
                "invalid_field", f"a message_id is a string of 1 to {MAX_MESSAGE_ID} characters", "message_id"
            ),
            None,
            kind,
        )
    data = {name: each for name, each in data.items() if isinstance(name, str)}
    if kind == "send_message" and "content" in data:
        data["content"] = msgspec.Raw(b"null")
    fields = {"type": kind, "data": _clamped(data)} | ({"message_id": ref} if ref is not None else {})
    try:
        request: Request = msgspec.convert(fields, wanted)
    except msgspec.ValidationError as error:
        raise BadRequest(_field_error(str(error)), ref, kind) from None
    if isinstance(request, SendMessage):  # its fields are right, so something that nobody reads is not
        _malformed("not JSON as RFC 8259 has it", ref)
    return _checked(request, None)


def _field_error(text: str) -> WireError:
    found, missing = _PATH.search(text), _MISSING.search(text)
    path = re.split(r"[\[]", found[1], maxsplit=1)[0].rstrip(".") if found else ""
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
    return WireError("invalid_field", text.split(" - at ")[0], path or "data")


def _clamped(data: dict[str, Any]) -> dict[str, Any]:
    """Integers past 64 bits as the largest, one level of maps deep: a seq beyond the last is clamped."""
    return {
        name: _clamped(each) if isinstance(each, dict) and name in ("acks", "cursors")
        else SEQ_CEILING if type(each) is int and each > SEQ_CEILING else each
        for name, each in data.items() if isinstance(name, str)
    }  # fmt: skip


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


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_has_surrogate(each) for pair in value.items() for each in pair)
    return isinstance(value, list) and any(map(_has_surrogate, value))


def _quiet(raw: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(raw)
    except Exception:
        return None


def _shallow(text: str) -> str:
    """`text` with arrays and objects deeper than `_KEEP` replaced by null. Iterative, for any input."""
    pieces: list[str] = []
    level = cut = kept = 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "[{":
            level += 1
            if level == _KEEP + 1:
                cut = token.start()
        elif mark in "]}":
            if level == _KEEP + 1:
                pieces += (text[kept:cut], "null")
                kept = token.end()
            level -= 1
    return "".join([*pieces, text[kept:]])
