"""Structured logs: readable on a console, ECS JSON for machines; never a token, password or content."""

from __future__ import annotations

import logging
import re
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from hongyan.config import Settings

_SERVICE = "hongyan"
_ECS_VERSION = "8.11.0"
_REDACTED = "[redacted]"
_SECRET = re.compile(r"token|password|authorization|content(?!_type|_length)|secret", re.IGNORECASE)
# A JWT that got into a text: an error's, a traceback's. Its header always begins with `{"`.
_JWT = re.compile(r"eyJ[\w-]{5,}\.[\w-]+\.[\w-]*")
_speaker: dict[str, str] = {}  # which of the server's processes this is, where there are several
_INTERNAL = {"_record", "_from_structlog", "exc_info", "stack_info"}


def configure(settings: Settings) -> None:
    """Set up structlog and the standard library's logging, both to standard error."""
    tty = sys.stderr.isatty()
    machine = settings.log_format == "json" or (settings.log_format == "auto" and not tty)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _name_speaker,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    last: list[Processor] = (
        [ecs, structlog.processors.JSONRenderer(default=str)]
        if machine
        # Plain: the other formatters print local variables, passwords and tokens among them.
        else [structlog.dev.ConsoleRenderer(colors=tty, exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in ("picows", "asyncio"):
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    # A warning of uvicorn's is what one client did wrong: as many lines as it likes to send requests.
    logging.getLogger("uvicorn").setLevel(max(level, logging.ERROR))
    logging.getLogger("uvicorn.error").setLevel(max(level, logging.ERROR))


def speak_as(process: str) -> None:
    """Have every line from here on say which process it is of. (Also lines of threads, which have no context.)"""
    _speaker["process"] = process


def _name_speaker(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    event.update(_speaker)
    return event


def redact(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """What a secret key holds is replaced, also in dicts within; so is a JWT in any text."""
    for key, value in event.items():
        if key not in _INTERNAL:
            event[key] = _REDACTED if _SECRET.search(key) else _clean(value)
    return event


def _clean(value: object) -> object:
    if isinstance(value, str):
        return _JWT.sub(_REDACTED, value) if "eyJ" in value else value
    if isinstance(value, dict):
        return {k: _REDACTED if _SECRET.search(str(k)) else _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, int | float):
        return value
    return _clean(repr(value))  # an object's repr may hold anything


def ecs(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Elastic Common Schema names; what has none goes under `hongyan`."""
    record: EventDict = {
        "@timestamp": event.pop("timestamp"),
        "log.level": event.pop("level"),
        "message": str(event.pop("event")),
        "ecs.version": _ECS_VERSION,
        "service.name": _SERVICE,
        "log.logger": event.pop("logger", _SERVICE),
    }
    if "process" in event:
        record["process.name"] = event.pop("process")
    if "exception" in event:
        trace = str(event.pop("exception"))
        record["error.stack_trace"] = trace
        kind, _, text = trace.rstrip().rpartition("\n")[2].partition(": ")
        record["error.type"], record["error.message"] = kind, text
    if "error" in event:
        record["error.message"] = str(event.pop("error"))
    if event:
        record[_SERVICE] = {k: v if isinstance(v, int | float | bool) else str(v) for k, v in event.items()}
    return record
