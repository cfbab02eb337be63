"""What the counters promise: callers who both have requests waiting are served alike, within twice
the longest prompt or the cache (`lorry.engine.service`), whatever they ask for."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from lorry.core import FinishReason
from lorry.engine.service import ANSWER, PROMPT, Counters
from support.engine_fakes import request
from support.scheduling import BLOCK, Bench

CALLERS = "abc"
LONGEST, ANSWERED = 12, 12

Sizes = st.lists(st.tuples(st.integers(1, LONGEST), st.integers(1, ANSWERED)), min_size=1)
Weights = st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 3.0])] * len(CALLERS))


@given(
    sizes=st.tuples(*[Sizes] * len(CALLERS)),
    weights=Weights,
    seqs=st.integers(1, 6),
    blocks=st.integers(8, 30),
    idle=st.integers(0, 20),
)
def test_the_service_of_two_who_wait_differs_by_no_more_than_the_bound(
    sizes: tuple[list[tuple[int, int]], ...],
    weights: tuple[float, ...],
    seqs: int,
    blocks: int,
    idle: int,
) -> None:
    """The last caller comes only after `idle` steps. Each has ten requests waiting at all times."""
    bench = Bench(seqs=seqs, blocks=blocks, tokens=16)
    weight = dict(zip(CALLERS, weights, strict=True))
    sent: dict[str, int] = dict.fromkeys(CALLERS, 0)
    service: dict[str, float] = dict.fromkeys(CALLERS, 0.0)
    charged: set[str] = set()
    history: list[dict[str, float]] = []
    began = {caller: idle if caller == CALLERS[-1] else 0 for caller in CALLERS}
    for step in range(80):
        inside = {s.request.id for s in bench.scheduler._running}
        waiting = [s.request.caller for s in bench.scheduler._waiting]
        for caller, lengths in zip(CALLERS, sizes, strict=True):
            for _ in range(10 - waiting.count(caller) if step >= began[caller] else 0):
                prompt, new = lengths[sent[caller] % len(lengths)]
                name = f"{caller}{sent[caller]}"
                one = request(name, [7] * prompt, new, caller=caller, weight=weight[caller])
                bench.add(one)
                sent[caller] += 1
        seen = len(bench.events)
        bench.step()
        inside |= {s.request.id for s in bench.scheduler._running}
        inside |= {e.request_id for e in bench.events[seen:] if e.finish is FinishReason.LENGTH}
        for name in inside - charged:
            charged.add(name)
            lengths = sizes[CALLERS.index(name[0])]
            prompt, _ = lengths[int(name[1:]) % len(lengths)]
            service[name[0]] += PROMPT * prompt / weight[name[0]]
        for event in bench.events[seen:]:
            caller = event.request_id[0]
            service[caller] += ANSWER * len(event.drawn) / weight[caller]
        history.append(dict(service))
    unit = max(PROMPT * LONGEST, ANSWER * blocks * BLOCK) / min(weights)
    for one, other in ("ab", "ac", "bc"):
        gaps = [now[one] - now[other] for now in history[max(began[one], began[other]) :]]
        assert max(gaps) - min(gaps) <= 2 * unit


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["begin", "end", "add"])), max_size=200
    )
)
def test_what_is_forgotten_would_have_been_raised_anyway(operations: list[tuple[str, str]]) -> None:
    kept, pruned = Counters[str](), Counters[str]()
    waiting: set[str] = set()
    counts = defaultdict[str, int](int)
    for name, what in operations:
        if what == "begin" and name not in waiting:
            pruned._most = 0
            pruned.forget(waiting)
            kept.begin(name, waiting)
            pruned.begin(name, waiting)
            waiting.add(name)
            assert kept[name] == pruned[name]
        elif what == "end" and name in waiting:
            waiting.discard(name)
            kept.end(name)
            pruned.end(name)
        elif what == "add" and name in waiting:
            counts[name] += 1
            kept.add(name, counts[name])
            pruned.add(name, counts[name])
        assert all(kept[one] == pruned[one] for one in waiting)
