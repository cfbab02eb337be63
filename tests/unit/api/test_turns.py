"""Who goes on in which turn of the event loop."""

from __future__ import annotations

import asyncio

from lorry.api.turns import Turns
from support.patience import PATIENCE


def test_one_goes_on_in_a_turn_and_others_have_theirs_between() -> None:
    async def main() -> list[str]:
        turns, seen = Turns(), list[str]()

        async def pass_by(name: str) -> None:
            await turns.mine()
            seen.append(name)

        async def look() -> None:
            while len([one for one in seen if one != "-"]) < 5:
                seen.append("-")
                await asyncio.sleep(0)

        await asyncio.gather(*(pass_by(name) for name in "abcde"), look())
        return seen

    seen = asyncio.run(main())
    assert [one for one in seen if one != "-"] == list("abcde")
    # Behind all of them in the loop, and not behind all of them in time.
    assert seen.index("-") == 1
    for one, other in zip("abcd", "bcde", strict=True):
        assert "-" in seen[seen.index(one) : seen.index(other)]


def test_who_is_alone_does_not_wait() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(3):
            going = turns.mine()
            try:
                going.send(None)
            except StopIteration:
                pass
            else:
                raise AssertionError("it waits")
            await asyncio.sleep(0)

    asyncio.run(main())


def test_who_gave_up_takes_nobody_s_turn() -> None:
    async def main() -> list[str]:
        turns, seen = Turns(), list[str]()

        async def pass_by(name: str) -> None:
            await turns.mine()
            seen.append(name)

        tasks = {name: asyncio.create_task(pass_by(name)) for name in "abcd"}
        await asyncio.sleep(0)
        tasks["b"].cancel()
        tasks["c"].cancel()
        await asyncio.wait_for(asyncio.gather(tasks["a"], tasks["d"]), PATIENCE)
        # And the next one need not wait for a turn that nobody took.
        await asyncio.wait_for(pass_by("e"), PATIENCE)
        return seen

    assert asyncio.run(main()) == ["a", "d", "e"]
