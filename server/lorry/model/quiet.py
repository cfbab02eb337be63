"""transformers' own progress bars and remarks, off for a while: start-up has one voice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, and nothing below an error, until the block ends.

    One of transformers' bars goes past its own switch to stderr, so stderr is held too:
    use it in start-up only, while no other thread writes there.
    """
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
