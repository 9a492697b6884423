"""Structured logs: readable on a console, ECS JSON for machines; never a token, password or content."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from hongyan.config import Settings

SECRET = ("token", "password", "authorization", "content", "secret")
_SERVICE = "hongyan"


def configure(settings: Settings) -> None:
    """Set up structlog and the standard library's logging, both to standard error."""
    machine = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info, _redact,
    ]  # fmt: skip
    last: list[Processor] = (
        [_ecs, structlog.processors.JSONRenderer()]
        if machine
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
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
    for noisy in ("picows", "uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def _redact(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    for key in event:
        if any(word in key.lower() for word in SECRET):
            event[key] = "[redacted]"
    return event


def _ecs(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Elastic Common Schema 8 names; what has none goes under `hongyan`."""
    record: EventDict = {
        "@timestamp": event.pop("timestamp"),
        "log.level": event.pop("level"),
        "message": str(event.pop("event")),
        "ecs.version": "8.11.0",
        "service.name": _SERVICE,
        "log.logger": event.pop("logger", _SERVICE),
    }
    if "exception" in event:
        record["error.stack_trace"] = event.pop("exception")
    if event:
        record[_SERVICE] = {
            key: value if isinstance(value, int | float | bool) else str(value)
            for key, value in event.items()
        }
    return record
