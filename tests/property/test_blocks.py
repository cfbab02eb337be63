"""No sequence of calls makes the block pool hand a block out twice, or lose one."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lorry.engine.blocks import BlockPool


class PoolMachine(RuleBasedStateMachine):
    pool: BlockPool

    @initialize(num_blocks=st.integers(1, 12), block_size=st.integers(1, 5))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.pool = BlockPool(num_blocks, block_size)
        self.held: list[list[int]] = []

    @rule(tokens=st.integers(0, 40))
    def begin(self, tokens: int) -> None:
        blocks: list[int] = []
        self.grow(blocks, tokens)
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.integers(0, 40))
    def extend(self, data: st.DataObject, tokens: int) -> None:
        self.grow(data.draw(st.sampled_from(self.held)), tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.give_back(self.held.pop(index))

    def grow(self, blocks: list[int], tokens: int) -> None:
        before, free = list(blocks), self.pool.num_free
        missing = max(0, -(-tokens // self.block_size) - len(before))
        if self.pool.grow(blocks, tokens):
            assert len(blocks) == len(before) + missing
            assert len(blocks) * self.block_size >= tokens
        else:
            assert blocks == before
            assert missing > free == self.pool.num_free
        assert blocks[: len(before)] == before

    @invariant()
    def each_block_is_in_one_place(self) -> None:
        if not hasattr(self, "held"):
            return
        out = [block for blocks in self.held for block in blocks]
        assert len(set(out)) == len(out)
        assert set(out) <= set(range(self.num_blocks))
        assert self.pool.num_used == len(out)
        assert self.pool.num_free == self.num_blocks - len(out)

    def teardown(self) -> None:
        if not hasattr(self, "held"):
            return
        for blocks in self.held:
            self.pool.give_back(blocks)
        everything: list[int] = []
        assert self.pool.grow(everything, self.num_blocks * self.block_size)
        assert sorted(everything) == list(range(self.num_blocks))


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestPool = PoolMachine.TestCase
