"""The slot table against a plain model of it, over any sequence of calls."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lorry_adapters.lora.slot_table import SlotTable

DIGESTS = "abcdefg"
digests = st.sampled_from(DIGESTS)


@dataclass
class Entry:
    slot: int
    pins: int = 0
    forgotten: bool = False


class SlotMachine(RuleBasedStateMachine):
    table: SlotTable

    @initialize(num_slots=st.integers(1, 5))
    def start(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.table = SlotTable(num_slots)
        self.model: dict[str, Entry] = {}
        """In order of last use."""

    @rule(
        digest=digests,
        keep=st.lists(digests, max_size=3),
        last=st.frozensets(digests, max_size=4),
    )
    def claim(self, digest: str, keep: list[str], last: frozenset[str]) -> None:
        if digest in self.model:
            return
        taken = {entry.slot for entry in self.model.values()}
        free = [slot for slot in range(1, self.num_slots + 1) if slot not in taken]
        victims = [d for d, entry in self.model.items() if entry.pins == 0 and d not in keep]
        victims.sort(key=last.__contains__)
        claim = self.table.claim(digest, keep=keep, last=last)
        if free:
            assert claim is not None
            assert (claim.slot, claim.evicted) == (free[0], None)
        elif victims:
            assert claim is not None
            assert claim.evicted == victims[0]
            assert claim.slot == self.model.pop(victims[0]).slot
        else:
            assert claim is None
        if claim is not None:
            self.model[digest] = Entry(claim.slot)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.model)))
        entry = self.model.pop(digest)
        self.model[digest] = entry
        entry.pins += 1
        entry.forgotten = False
        assert self.table.pin(digest) == entry.slot

    @precondition(lambda self: any(entry.pins for entry in self.model.values()))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(d for d, e in self.model.items() if e.pins)))
        entry = self.model[digest]
        entry.pins -= 1
        if entry.forgotten and not entry.pins:
            del self.model[digest]
        self.table.unpin(digest)

    @rule(digest=digests)
    def forget(self, digest: str) -> None:
        entry = self.model.get(digest)
        if entry is not None and entry.pins:
            entry.forgotten = True
        else:
            self.model.pop(digest, None)
        self.table.forget(digest)

    @rule(wanted=st.lists(digests, max_size=5))
    def room(self, wanted: list[str]) -> None:
        """What it says of room is what claiming them one by one would find."""
        held = {d for d, entry in self.model.items() if entry.pins or d in wanted}
        assert self.table.has_room_for(wanted) == (len(held | set(wanted)) <= self.num_slots)

    @invariant()
    def as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.table.resident == tuple(self.model)
        assert {d: self.table.slot_of(d) for d in DIGESTS} == {
            d: self.model[d].slot if d in self.model else None for d in DIGESTS
        }
        assert self.table.num_pinned == sum(entry.pins > 0 for entry in self.model.values())
        slots = [entry.slot for entry in self.model.values()]
        assert len(set(slots)) == len(slots)
        assert set(slots) <= set(range(1, self.num_slots + 1))


SlotMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestSlots = SlotMachine.TestCase
