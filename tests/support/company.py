"""A row's answer does not depend on the rows beside it, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

from support.executor_driver import Ask, ExecutorDriver, token_ids


def check_company(driver: ExecutorDriver, asks: Sequence[Ask], count: int) -> None:
    """Score each row and draw `count` tokens: alone, with all others, in another order, and in
    parts."""
    together = driver.score(asks)
    assert [driver.score([ask])[0] for ask in asks] == together
    assert driver.score(asks[::-1])[::-1] == together
    assert driver.score(asks[::-1], chunk=3)[::-1] == together
    drawn = [token_ids(one) for one in driver.greedy(asks, count, chunk=7)]
    assert [token_ids(driver.greedy([ask], count)[0]) for ask in asks] == drawn
