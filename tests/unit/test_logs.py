"""Logging: one line a message, in both formats, and nothing can forge a second."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from lorry.logs import setup


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_json_lines_carry_the_extra_fields() -> None:
    stream = io.StringIO()
    setup("info", "json", stream)
    logging.getLogger("lorry.api").info("done %d", 1, extra={"adapter": "pirate", "tokens": 12})
    entry = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert entry == {
        "level": "info",
        "logger": "lorry.api",
        "message": "done 1",
        "adapter": "pirate",
        "tokens": 12,
    }


def test_text_lines_carry_them_too_and_stay_one_line() -> None:
    stream = io.StringIO()
    setup("info", "text", stream)
    name = "x\n2026-01-01T00:00:00.000Z ERROR forged\x1b[31m"
    logging.getLogger("lorry.api").warning("no adapter %s", name, extra={"path": "/a b", "n": 1})
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().endswith('path="/a b" n=1\n')


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_traceback_is_kept(format: str) -> None:
    stream = io.StringIO()
    setup("info", format, stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("lorry").exception("step failed")
    assert "ValueError: broken" in stream.getvalue()
    if format == "json":
        assert json.loads(stream.getvalue())["message"] == "step failed"


def test_levels_ours_and_the_libraries() -> None:
    stream = io.StringIO()
    setup("info", "text", stream)
    logging.getLogger("lorry.engine").debug("a")
    logging.getLogger("lorry.engine").info("b")
    logging.getLogger("uvicorn.access").info("c")
    logging.getLogger("somebody").info("d")
    logging.getLogger("somebody").warning("e")
    logging.getLogger("bitsandbytes.autograd._functions").warning("f")
    warnings.warn("g", stacklevel=1)
    assert [line.split()[3] for line in stream.getvalue().splitlines() if " INFO " in line] == ["b"]
    assert "somebody e" in stream.getvalue() and " d\n" not in stream.getvalue()
    assert " f\n" not in stream.getvalue() and "UserWarning: g" in stream.getvalue()
    setup("debug", "text", stream)
    logging.getLogger("lorry.engine").debug("h")
    assert stream.getvalue().count(" h\n") == 1, "the old handler is replaced"
