"""Threads for the work on text that would hold the event loop up: few, and their own.

A prompt of a megabyte is seconds of work. Others of that kind wait for it; a prompt of a
page does not, and uploads have other threads. What nobody waits for any more is not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

BRIEF = 1_000
"""Characters. That much is done sooner than handed over."""

LONG = 50_000
"""Characters, from which on a text waits for its like."""

Result = TypeVar("Result")


class Workers:
    def __init__(self) -> None:
        # More would take the processor from the steps, which need far longer for a prompt.
        self._pages = ThreadPoolExecutor(1, thread_name_prefix="lorry-text")
        self._books = ThreadPoolExecutor(1, thread_name_prefix="lorry-long-text")

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """`work` on a text of `size` characters: here and now, or in a thread."""
        if size <= BRIEF:
            return work()
        threads = self._pages if size <= LONG else self._books
        return await asyncio.get_running_loop().run_in_executor(threads, work)
