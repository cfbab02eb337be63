"""Text in threads: what waits for what, and what is not begun any more."""

from __future__ import annotations

import asyncio
import threading

from lorry.api.workers import BRIEF, LONG, Workers
from support.patience import PATIENCE


def test_a_brief_text_stays_where_it_is_and_a_page_does_not() -> None:
    async def main() -> None:
        workers, here = Workers(), threading.get_ident()
        assert await workers.run(BRIEF, threading.get_ident) == here
        assert await workers.run(BRIEF + 1, threading.get_ident) != here

    asyncio.run(main())


def test_a_page_does_not_wait_for_a_book_and_nobody_for_who_has_gone() -> None:
    async def main() -> None:
        workers, gate, begun = Workers(), threading.Event(), list[str]()

        def book() -> None:
            begun.append("first")
            assert gate.wait(PATIENCE)

        first = asyncio.create_task(workers.run(LONG + 1, book))
        gone = asyncio.create_task(workers.run(LONG + 1, lambda: begun.append("gone")))
        last = asyncio.create_task(workers.run(LONG + 1, lambda: begun.append("last")))
        try:
            page = workers.run(LONG, lambda: "page")
            assert await asyncio.wait_for(page, PATIENCE) == "page"
            gone.cancel()
            await asyncio.wait([gone])
        finally:
            gate.set()
        await asyncio.wait_for(asyncio.gather(first, last), PATIENCE)
        assert begun == ["first", "last"]

    asyncio.run(main())
