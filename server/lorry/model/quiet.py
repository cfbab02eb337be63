"""transformers' own progress bars and remarks, off for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO

from transformers.utils import logging


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Nothing below an error, and no bars unless `bars`, until the block ends.

    One of transformers' bars goes past its own switch to stderr, so stderr is held too:
    use it in start-up only, while no other thread writes there.
    """
    level = logging.get_verbosity()
    enabled = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    try:
        with nullcontext() if bars else redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
