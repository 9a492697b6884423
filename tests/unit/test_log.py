"""Logs: the form for machines, and what never appears in either form."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from hongyan.config import Settings
from hongyan.log import configure, redact, speak_as

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., io.StringIO]]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def begin(tty: bool = False, **settings: Any) -> io.StringIO:
        stream = io.StringIO()
        stream.isatty = lambda: tty  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", stream)
        configure(Settings(**settings))
        return stream

    yield begin
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_the_names_of_ecs(start):
    stream = start(log_format="json")
    structlog.get_logger("hongyan.test").info("listening", port=8080, address="::1")
    (record,) = lines(stream)
    assert record.pop("@timestamp").endswith("Z")
    assert record == {
        "log.level": "info", "message": "listening", "ecs.version": "8.11.0", "service.name": "hongyan",
        "log.logger": "hongyan.test", "hongyan": {"port": 8080, "address": "::1"},
    }  # fmt: skip


def test_an_exception_is_its_type_its_text_and_its_trace(start):
    stream = start(log_format="json")
    try:
        raise ValueError("no such thing")
    except ValueError:
        structlog.get_logger("hongyan.test").exception("failed")
    (record,) = lines(stream)
    assert record["error.type"] == "ValueError"
    assert record["error.message"] == "no such thing"
    assert record["error.stack_trace"].startswith("Traceback")
    assert record["log.level"] == "error"


def test_the_standard_library_comes_out_in_the_same_form(start):
    stream = start(log_format="json")
    logging.getLogger("some.library").warning("%s is odd", "this")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    (record,) = lines(stream)
    assert (record["message"], record["log.logger"]) == ("this is odd", "some.library")


def test_levels(start):
    stream = start(log_format="json", log_level="warning")
    log = structlog.get_logger("hongyan.test")
    log.info("not said")
    log.warning("said")
    assert [record["message"] for record in lines(stream)] == ["said"]


@pytest.mark.parametrize(("tty", "log_format"), [(False, "auto"), (True, "json")])
def test_machines_get_json(start, tty, log_format):
    stream = start(tty=tty, log_format=log_format)
    structlog.get_logger("x").info("hello")
    assert lines(stream)


def test_colours_only_on_a_terminal(start):
    for tty in (True, False):
        stream = start(tty=tty, log_format="console")
        structlog.get_logger("x").info("hello", a=1)
        assert ("\x1b[" in stream.getvalue()) == tty
        assert "hello" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_secrets_never_appear(start, log_format):
    stream = start(log_format=log_format)
    log = structlog.get_logger("x")
    secret = "a-secret-to-look-for"
    log.info("a", token=secret, old_password=secret, Authorization=secret, content=secret, jwt_secret=secret)
    log.info("b", request={"password": secret, "list": [{"token": secret}], "user": "alice"})
    log.info(f"refused {JWT}", error=f"bad {JWT}", other=ValueError(JWT))
    logging.getLogger("lib").warning("got %s", JWT)
    try:
        password = secret
        raise ValueError(f"{JWT} of {len(password)}")
    except ValueError:
        log.exception("failed")
    said = stream.getvalue()
    assert secret not in said
    assert JWT not in said
    assert JWT.split(".")[1] not in said
    assert "alice" in said
    assert said.count("redacted") >= 8


def test_what_only_sounds_like_a_secret_is_kept():
    event = {"event": "x", "content_type": "text", "user": "alice", "n": 1, "none": None}
    assert redact(None, "", dict(event)) == event


def test_a_process_of_several_names_itself(start, monkeypatch):
    monkeypatch.setattr("hongyan.log._speaker", {})
    stream = start(log_format="json")
    speak_as("gateway-2")
    structlog.get_logger("hongyan.test").info("here")
    assert lines(stream)[0]["process.name"] == "gateway-2"
