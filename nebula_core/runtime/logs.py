"""Logs: one JSON object per line on stderr, `action` first, no secret in any of them.

Every line is ASCII: a control or bidirectional character that somebody put into a model name arrives as an escape,
so that one event stays one line (reliability, T18). Libraries that log through `logging` come out the same way.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from nebula_core.security.text import clean_text

_SECRETS = (
    (re.compile(r"nbl_([A-Za-z0-9]+)_[A-Za-z0-9_-]+"), r"nbl_\1_***"),
    (re.compile(r"(?i)(\bbearer\s+)(?!nbl_)[^\s\"',]+"), r"\1***"),
    # The password part of an address.
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@", re.IGNORECASE), r"\1:***@"),
)
_SECRET_NAMES = frozenset({"password", "secret", "token", "api_key", "authorization", "private_key"})
_DEEPEST = 8


def redacted(value: object, depth: int = 0) -> object:
    """The value without tokens, passwords in addresses, and whatever stands under a secret name."""
    if isinstance(value, str):
        for pattern, replacement in _SECRETS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, bytes):
        return redacted(value.decode("utf-8", "replace"), depth)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth >= _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {
            str(redacted(str(name))): "***" if str(name).lower() in _SECRET_NAMES else redacted(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item, depth + 1) for item in value]
    return redacted(str(value), depth)


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        # structlog's own bookkeeping objects (`_record`) are not values to be shown.
        if not name.startswith("_") and name != "exc_info":
            event[name] = "***" if name.lower() in _SECRET_NAMES else redacted(value)
    return event


def _clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: clean_text(value) if isinstance(value, str) else value for name, value in event.items()}


def configure_logging(level: str = "info", *, json: bool = True, stream: TextIO | None = None) -> None:
    """Sets up structlog and `logging` for this process. `json=False` is for a person at a terminal."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _redact,
    ]
    if json:
        last += [structlog.processors.EventRenamer("action"), structlog.processors.JSONRenderer(sort_keys=False)]
    else:
        last += [_clean, structlog.dev.ConsoleRenderer(colors=False)]
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(_level(level))


def _level(name: str) -> int:
    levels: dict[str, Any] = logging.getLevelNamesMapping()
    found = levels.get(name.upper())
    if found is None:
        raise ValueError(f"{name!r} is no log level; use debug, info, warning or error")
    return int(found)
