"""No sequence of calls makes the block pool hand a block out twice, or lose one."""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lorry.engine.blocks import BlockPool

DIGESTS = ("a", "b")


def tags_of(key: int) -> list[str]:
    """Equal keys have equal adapters."""
    return [digest for bit, digest in enumerate(DIGESTS) if key >> bit & 1]


def name_of(key: int) -> bytes:
    return b"%d" % key


class Model:
    """The pool, and a model of it: who uses which block, and the keys of blocks in the order of
    their last use."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.pool = BlockPool(num_blocks, block_size)
        self.held: list[list[int]] = []
        self.keys: dict[int, int] = {}
        self.idle: list[int] = []

    def uses(self, block: int) -> int:
        return sum(block in blocks for blocks in self.held)

    def grow(self, blocks: list[int], tokens: int) -> None:
        before, free = list(blocks), self.pool.num_free
        missing = max(0, -(-tokens // self.block_size) - len(before))
        evicted = self.idle[: max(0, missing - (free - len(self.idle)))]
        if self.pool.grow(blocks, tokens):
            assert len(blocks) == len(before) + missing
            assert len(blocks) * self.block_size >= tokens
            # Blocks without a key first, then those that nobody has used for longest.
            assert set(evicted) <= set(blocks[len(before) :])
            for block in evicted:
                self.idle.remove(block)
                del self.keys[block]
            assert not set(self.idle) & set(blocks[len(before) :])
        else:
            assert blocks == before
            assert missing > free == self.pool.num_free
        assert blocks[: len(before)] == before

    def end(self, index: int) -> None:
        blocks = self.held.pop(index)
        self.pool.give_back(blocks)
        for block in reversed(blocks):
            if block in self.keys and not self.uses(block):
                self.idle.append(block)

    def enter(self, blocks: list[int], index: int, key: int) -> None:
        block = blocks[index]
        if block in self.keys:
            return
        self.pool.enter(block, name_of(key), tags_of(key))
        if key not in self.keys.values():
            self.keys[block] = key

    def share(self, keys: list[int]) -> None:
        found = self.pool.find(map(name_of, keys))
        expected = []
        for key in keys:
            block = next((block for block, other in self.keys.items() if other == key), None)
            if block is None:
                break
            expected.append(block)
        assert found == expected
        assert self.pool.num_idle(found) == len(set(found) & set(self.idle))
        self.pool.share(found)
        self.held.append(found)
        self.idle = [block for block in self.idle if block not in found]

    def withdraw(self, blocks: list[int]) -> None:
        self.pool.withdraw(blocks)
        self.lose(blocks)

    def forget(self, digest: str) -> None:
        self.pool.forget(digest)
        self.lose([block for block, key in self.keys.items() if digest in tags_of(key)])

    def lose(self, blocks: list[int]) -> None:
        for block in blocks:
            self.keys.pop(block, None)
        self.idle = [block for block in self.idle if block in self.keys]

    def check(self) -> None:
        out = {block for blocks in self.held for block in blocks}
        assert out <= set(range(self.num_blocks))
        assert self.pool.num_used == len(out)
        assert self.pool.num_free == self.num_blocks - len(out)
        assert self.pool.num_entered == len(self.keys)
        assert not out & set(self.idle)
        for blocks in self.held:
            alone = [block for block in blocks if self.uses(block) == 1]
            assert self.pool.num_freed(blocks) == len(alone)
            assert self.pool.num_freed(blocks, set(alone[:1])) == len(alone[1:])

    def close(self) -> None:
        """Every reference given back leaves every block to be taken."""
        while self.held:
            self.end(0)
        assert self.pool.num_used == 0
        everything: list[int] = []
        assert self.pool.grow(everything, self.num_blocks * self.block_size)
        assert sorted(everything) == list(range(self.num_blocks))
        assert self.pool.num_entered == 0


keys = st.integers(0, 7)


class PoolMachine(RuleBasedStateMachine):
    model: Model

    @initialize(num_blocks=st.integers(1, 12), block_size=st.integers(1, 5))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.model = Model(num_blocks, block_size)

    @property
    def held(self) -> list[list[int]]:
        return self.model.held

    @rule(tokens=st.integers(0, 40))
    def begin(self, tokens: int) -> None:
        blocks: list[int] = []
        self.model.grow(blocks, tokens)
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.integers(0, 40))
    def extend(self, data: st.DataObject, tokens: int) -> None:
        self.model.grow(data.draw(st.sampled_from(self.held)), tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.model.end(data.draw(st.integers(0, len(self.held) - 1)))

    @precondition(lambda self: any(self.held))
    @rule(data=st.data(), key=keys)
    def enter(self, data: st.DataObject, key: int) -> None:
        blocks = data.draw(st.sampled_from([blocks for blocks in self.held if blocks]))
        self.model.enter(blocks, data.draw(st.integers(0, len(blocks) - 1)), key)

    @rule(wanted=st.lists(keys, unique=True, max_size=5))
    def share(self, wanted: list[int]) -> None:
        self.model.share(wanted)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.model.withdraw(data.draw(st.sampled_from(self.held)))

    @rule(digest=st.sampled_from(DIGESTS))
    def forget(self, digest: str) -> None:
        self.model.forget(digest)

    @invariant()
    def each_block_is_in_one_place(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.close()


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestPool = PoolMachine.TestCase


def test_no_block_is_lost_in_a_hundred_thousand_operations() -> None:
    draw = random.Random(11)
    model = Model(24, 3)
    for number in range(100_000):
        held = model.held
        match draw.randrange(12):
            case 0 | 1 | 2:
                blocks: list[int] = []
                model.grow(blocks, draw.randrange(30))
                held.append(blocks)
            case 3 | 4 if held:
                model.grow(draw.choice(held), draw.randrange(40))
            case 5 | 6 if any(held):
                blocks = draw.choice([one for one in held if one])
                model.enter(blocks, draw.randrange(len(blocks)), draw.randrange(40))
            case 7 | 8:
                start = draw.randrange(40)
                model.share(list(range(start, start + draw.randrange(4))))
            case 9 if held and draw.random() < 0.1:
                model.withdraw(draw.choice(held))
            case 10 if draw.random() < 0.1:
                model.forget(draw.choice(DIGESTS))
            case _ if held:
                model.end(draw.randrange(len(held)))
        while len(held) > 12:
            model.end(draw.randrange(len(held)))
        if number % 100 == 0:
            model.check()
    model.close()
