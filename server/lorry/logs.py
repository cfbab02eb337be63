"""Logging: one handler, as text for people or as JSON lines for collectors.

No part of a prompt or an answer is logged: callers pass identifiers and numbers in `extra`, and
both formats show those.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from lorry.advice import advised

request_id: ContextVar[str] = ContextVar("request_id")
"""The id of the request in this context; all of its log lines contain it."""

_STANDARD = frozenset(
    vars(logging.LogRecord("", 0, "", 0, "", None, None)).keys()
    | {"message", "asctime", "taskName", "color_message"}
)


def setup(level: str, format: str, stream: TextIO | None = None) -> None:
    """Make `stream` (default stderr) the only output of all loggers in the process.

    `level` is `debug`, `info`, `warning` or `error`; `format` is `text` or `json`. Libraries log
    from `warning` up at any `level` except `debug`, and so does uvicorn, which logs successes under
    `uvicorn.error`. Calling it again replaces the handler.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    handler.addFilter(_named)
    handler.addFilter(_advised)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    others = number if level == "debug" else max(number, logging.WARNING)
    root.setLevel(others)
    for name in ("lorry", "lorry_adapters", "uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(number if name.startswith("lorry") else others)
    logging.captureWarnings(True)
    hush_libraries()


def hush_libraries() -> None:
    """Silence messages that a library repeats in every forward pass, or about optional packages.

    bitsandbytes warns about each int8 layer's cast in each step.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _named(record: logging.LogRecord) -> bool:
    """Add the request's id. A handler's filter runs in the context of the request."""
    name = request_id.get(None)
    if name is not None and not hasattr(record, "request_id"):
        record.request_id = name
    return True


def _advised(record: logging.LogRecord) -> bool:
    """Add the advice to a problem that `lorry_adapters` logs."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            advised(value) if isinstance(value, str) else value for value in record.args
        )
    return True


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields from `extra`, and the request's id."""
    # Libraries put fields of their own into every record of the process, as Ray does.
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and not key.startswith("_")
    }


def news(format: str) -> Callable[[str], None]:
    """Return a function that reports the start's progress at every level: as lines on standard
    output, or in the log if every line must be JSON."""
    return _log if format == "json" else _print


def _log(line: str) -> None:
    logger = logging.getLogger("lorry")
    logger.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, line, (), None))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO lorry.engine message key=value`, one line per message.

    Control characters are escaped: an adapter's name cannot forge a second line.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record)} {record.levelname} {record.name} {record.getMessage()}"
        for key, value in fields_of(record).items():
            text = str(value)
            line += f" {key}={json.dumps(text) if ' ' in text or not text else text}"
        line = "".join(char if char.isprintable() else _escaped(char) for char in line)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, the extra fields, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in fields_of(record).items():
            entry.setdefault(key, value)
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
