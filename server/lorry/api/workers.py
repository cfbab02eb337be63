"""Threads for work on text that would block the event loop.

A prompt of a megabyte takes seconds. Other long prompts wait for it, but a prompt of a page does
not, and uploads have their own threads. Work that nobody waits for any more is not started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

BRIEF = 1_000
"""Characters. So much text is done sooner than it is handed over."""

LONG = 50_000
"""Characters, above which a text waits for other long ones."""

Result = TypeVar("Result")


class Workers:
    def __init__(self) -> None:
        # More threads would take the processor from the steps, which take far longer for a prompt.
        self._pages = ThreadPoolExecutor(1, thread_name_prefix="lorry-text")
        self._books = ThreadPoolExecutor(1, thread_name_prefix="lorry-long-text")

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """Run `work` on a text of `size` characters: directly, or in a thread."""
        if size <= BRIEF:
            return work()
        threads = self._pages if size <= LONG else self._books
        return await asyncio.get_running_loop().run_in_executor(threads, work)
