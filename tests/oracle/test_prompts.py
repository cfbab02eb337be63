"""Virtual tokens and activated LoRA through scheduler and runner, against PEFT alone.

Prompt logprobs and greedy tokens of prompt tuning, p-tuning, prefix tuning and aLoRA: alone
and mixed with the base and a LoRA, in pieces, after starting over, and summed with a LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import MultitaskPromptTuningConfig, PeftModel

from lorry.errors import InvocationMissing
from support.compiled import forbid_packed, in_codes, require_compiled_step
from support.kind import INVOCATION, VIRTUAL, Kind, invocation_tokens
from support.peft_kinds import KINDS
from support.peft_made import Made, load_base, make
from support.peft_oracle import PeftOracle
from support.prompts import random_prompt
from support.rounded import rounded
from support.stepped import Ask, House

TOLERANCE = 1e-4
LOUD = 0.05
EMBEDDED = ("prompt tuning", "p-tuning", "cpt", "one task of multitask")
PREFIXED = ("prefix tuning", "prefix tuning, projected", "cartridge")
FAMILIES = ("llama", "mistral", "qwen2", "gpt2", "gpt_neox", "opt", "gemma", "gemma2", "gemma3")
MORE = ("granite", "smollm3", "phi3", "bloom", "gptj")
"""One kind of each: embeddings scaled behind the table, layers without positions, and rows
that are padded."""

ONE_TASK = Kind(
    "one task of multitask",
    "Virtual tokens",
    lambda f: MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, num_tasks=1, num_ranks=2
    ),
    noise=1.0,
)


def kind_of(name: str) -> Kind:
    return ONE_TASK if name == ONE_TASK.name else KINDS[name]


@dataclass
class Both:
    """One base on both sides, and adapters by the name of their kind."""

    family: str
    house: House
    base: Any
    root: Path

    def __post_init__(self) -> None:
        self._made: dict[tuple[str, int], Made] = {}

    def made(self, name: str, seed: int = 1) -> Made:
        if (name, seed) not in self._made:
            folder = self.root / f"{name}-{seed}".replace(" ", "-").replace(",", "")
            self._made[name, seed] = make(kind_of(name), self.family, self.base, folder, seed=seed)
        return self._made[name, seed]

    def folder(self, name: str, seed: int = 1) -> Path:
        return self.made(name, seed).folder


@pytest.fixture(scope="module")
def both(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Both]]:
    @cache
    def of(family: str) -> Both:
        model = tiny_model(family)
        return Both(family, House(model), load_base(model), tmp_path_factory.mktemp(family))

    yield of


@torch.inference_mode()
def table(model: torch.nn.Module, ids: Sequence[int], **more: Any) -> torch.Tensor:
    """Log-softmax `[T, V]` of the real tokens."""
    ids_T = torch.tensor([list(ids)])
    logits_TV = model(input_ids=ids_T, attention_mask=torch.ones_like(ids_T), **more).logits[0]
    return torch.log_softmax(logits_TV[-len(ids) :].float(), dim=-1)


def theirs(made: Made | None, base: Any, ids: Sequence[int], prompt: int) -> torch.Tensor:
    if made is None:
        return table(base, ids)
    if made.kind.name == ONE_TASK.name:
        return table(made.model, ids, task_ids=torch.tensor([0]))
    if made.kind.name == "alora":
        # Where the prompt has it, whatever the answer has.
        called = list(invocation_tokens())
        start = max(i for i in range(prompt) if list(ids[i : i + len(called)]) == called)
        return table(made.model, ids, alora_offsets=[len(ids) - start])
    return table(made.model, ids)


def check(pair: Both, asks: Sequence[tuple[str | None, Sequence[int]]], **limits: Any) -> None:
    """Every row's numbers against PEFT's for it alone."""
    given = [Ask(ids, () if name is None else [(pair.folder(name), 1.0)]) for name, ids in asks]
    for (name, ids), answer in zip(asks, pair.house.run(given, 6, **limits), strict=True):
        made = None if name is None else pair.made(name)
        compare(theirs(made, pair.base, [*ids, *answer.tokens], len(ids)), ids, answer)


def compare(table_TV: torch.Tensor, ids: Sequence[int], answer: Any) -> None:
    whole = [*ids, *answer.tokens]
    wanted = table_TV[:-1].gather(1, torch.tensor(whole[1:])[:, None])[:, 0].tolist()
    mine = [*answer.prompt, *answer.logprobs]
    assert len(answer.prompt) == len(ids) - 1
    assert max(abs(a - b) for a, b in zip(mine, wanted, strict=True)) < TOLERANCE
    assert answer.tokens == table_TV[len(ids) - 1 : -1].argmax(-1).tolist()


def mixed(*names: str) -> list[tuple[str | None, list[int]]]:
    """[base, these, a LoRA, these again], prompts of many lengths."""
    rows: list[str | None] = [None, *names, "lora", *names]
    return [(name, random_prompt(3 + 5 * row, row)) for row, name in enumerate(rows)]


def cells() -> list[Any]:
    every = [(family, name) for family in FAMILIES for name in EMBEDDED + PREFIXED]
    more = [(family, name) for family in MORE for name in ("prompt tuning", "prefix tuning")]
    return [pytest.param(*cell, id="-".join(cell).replace(" ", "_")) for cell in every + more]


@pytest.mark.parametrize(("family", "name"), cells())
def test_alone_and_mixed_and_in_pieces(family: str, name: str, both: Callable[[str], Both]) -> None:
    pair = both(family)
    pair.house.forget_slots()
    check(pair, [(name, random_prompt(20, 1))])
    check(pair, mixed(name))
    # A budget that is no multiple of anything cuts virtual tokens and prompts anywhere.
    check(pair, mixed(name), budget=11)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_loud(family: str, both: Callable[[str], Both]) -> None:
    """Or the tolerance could hide that nothing was done."""
    pair, ids = both(family), random_prompt(20, 1)
    base = table(pair.base, ids)
    for name in EMBEDDED + PREFIXED:
        off = theirs(pair.made(name), pair.base, ids, 20) - base
        assert off.abs().max() > LOUD, name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mistral"])
@pytest.mark.parametrize("name", ["prompt tuning", "prefix tuning"])
def test_after_starting_over(family: str, name: str, both: Callable[[str], Both]) -> None:
    """Blocks change hands in between: what stood in them is somebody else's."""
    pair = both(family)
    pair.house.forget_slots()
    rows = [(name if row % 2 else None, random_prompt(9 + row, row)) for row in range(4)]
    # Not enough for two of the four to the end.
    check(pair, rows, budget=16, blocks=4)
    assert pair.house.preemptions > 0


@pytest.mark.parametrize("budget", [4, 5, 6, 7])
def test_every_cut_through_the_virtual_tokens(budget: int, both: Callable[[str], Both]) -> None:
    pair = both("llama")
    pair.house.forget_slots()
    check(pair, [("prompt tuning", [7]), ("prefix tuning", [7]), (None, [7])], budget=budget)
    sizes = {count for step in pair.house.batches for count in step}
    assert min(sizes) == 1
    check(pair, [("prompt tuning", random_prompt(9, 2))], budget=budget)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_every_kind_in_one_batch(family: str, both: Callable[[str], Both]) -> None:
    pair = both(family)
    pair.house.forget_slots()
    names = [None, "prompt tuning", "dora", "prefix tuning", "ia3", "lora", "p-tuning"]
    check(pair, [(name, random_prompt(8 + row, row)) for row, name in enumerate(names)], budget=17)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("name", ["prompt tuning", "prefix tuning"])
def test_summed_with_a_lora(family: str, name: str, both: Callable[[str], Both]) -> None:
    """PEFT has no such sum; its parts: the prompt on a base into which the LoRA is merged."""
    pair = both(family)
    pair.house.forget_slots()
    merged = PeftModel.from_pretrained(copy.deepcopy(pair.base), pair.folder("lora"))
    on_merged = PeftModel.from_pretrained(merged.merge_and_unload(), pair.folder(name)).eval()
    ids = random_prompt(15, 3)
    for folders in ([name, "lora"], ["lora", name]):
        asks = [Ask(ids, [(pair.folder(one), 1.0) for one in folders]), Ask(ids)]
        summed, alone = pair.house.run(asks, 4, budget=9)
        compare(table(on_merged, [*ids, *summed.tokens]), ids, summed)
        compare(table(pair.base, [*ids, *alone.tokens]), ids, alone)


def test_scale_zero_is_the_base_exactly(both: Callable[[str], Both]) -> None:
    pair, ids = both("llama"), random_prompt(15, 3)
    pair.house.forget_slots()
    for name in ("prompt tuning", "prefix tuning", "alora"):
        (base,) = pair.house.run([Ask(ids)], 4)
        (zero,) = pair.house.run([Ask(ids, [(pair.folder(name), 0.0)])], 4)
        assert base == zero


def test_a_slot_forgets_its_prompt(both: Callable[[str], Both]) -> None:
    pair = both("llama")
    for name in ("prompt tuning", "lora", "prefix tuning", "lora", "prompt tuning"):
        pair.house.forget_slots()
        check(pair, [(name, random_prompt(12, 5)), (None, random_prompt(12, 5))])


def calling(before: int, after: int, seed: int) -> list[int]:
    """A prompt that calls the activated LoRA, twice where there is room: the last counts."""
    called = list(invocation_tokens())
    head = random_prompt(before, seed)
    first = [*called, *random_prompt(4, seed + 50)] if seed % 2 else []
    return [*head, *first, *called, *random_prompt(after, seed + 100)[:after]]


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "gpt2", "gpt_neox", "opt", "gemma", "phi3", "bloom"]
)
def test_alora(family: str, both: Callable[[str], Both]) -> None:
    assert INVOCATION
    pair = both(family)
    pair.house.forget_slots()
    rows: list[tuple[str | None, list[int]]] = [
        ("alora", calling(9, 3, 1)),
        (None, calling(9, 3, 1)),
        ("lora", calling(9, 3, 1)),
        ("alora", calling(1, 0, 2)),
        ("alora", calling(14, 1, 3)),
        ("alora", calling(4, 9, 4)),
    ]
    check(pair, rows[:1])
    check(pair, rows)
    check(pair, rows, budget=7)
    check(pair, rows, budget=13, blocks=10)
    assert pair.house.preemptions > 0


def test_alora_leaves_what_is_before_its_call_alone(both: Callable[[str], Both]) -> None:
    pair, ids = both("llama"), calling(12, 5, 2)
    start = len(ids) - 5 - len(invocation_tokens())
    (base,) = pair.house.run([Ask(ids)])
    (called,) = pair.house.run([Ask(ids, [(pair.folder("alora"), 1.0)])])
    # The logprob of the call's first token is said by the token before it.
    assert called.prompt[:start] == pytest.approx(base.prompt[:start], abs=1e-6)
    changed = [abs(a - b) for a, b in zip(called.prompt[start:], base.prompt[start:], strict=True)]
    assert max(changed) > LOUD


def test_alora_behind_virtual_tokens(both: Callable[[str], Both]) -> None:
    """Its place moves with the prompt. The sum of both, at the call and before it, is what
    the parts are: PEFT's aLoRA with the prefix's cache in front."""
    pair, ids = both("llama"), calling(7, 4, 2)
    pair.house.forget_slots()
    prefix = pair.made("prefix tuning").model
    alora = pair.made("alora").model
    asks = [Ask(ids, [(pair.folder("prefix tuning"), 1.0), (pair.folder("alora"), 1.0)])]
    (answer,) = pair.house.run(asks, 3, budget=5)
    whole = [*ids, *answer.tokens]
    offset = len(whole) - (len(ids) - 4 - len(invocation_tokens()))
    with torch.inference_mode():
        cells = prefix.get_prompt(1)
        logits = alora(
            input_ids=torch.tensor([whole]), past_key_values=cells, alora_offsets=[offset]
        ).logits[0]
    compare(torch.log_softmax(logits.float(), -1), ids, answer)


def test_a_prompt_that_does_not_call_is_refused(both: Callable[[str], Both]) -> None:
    pair = both("llama")
    called = list(invocation_tokens())
    ask = Ask(called[:-1], [(pair.folder("alora"), 1.0)])
    with pytest.raises(InvocationMissing, match="alora-1.*" + ".*".join(map(str, called))):
        pair.house.run([ask])


# ---- on the compiled step

WORST, MEAN = 0.03, 0.006
"""As in `test_native`, which says where they come from."""


@pytest.fixture(scope="module", params=["llama", "gpt2", "granite", "gemma3", "cohere"])
def on_step(request: pytest.FixtureRequest) -> str:
    """Its family: what is done to embeddings differs, and to positions."""
    return str(request.param)


@pytest.fixture(scope="module")
def compiled(on_step: str, tiny_model: Callable[[str], Path]) -> Iterator[House]:
    require_compiled_step()
    with in_codes():
        house = House(tiny_model(on_step), quantization="int8", kernels="compiled")
    yield house
    house.executor.paths.close()


def near(
    house: House, asks: Sequence[Ask], exact: Sequence[Path | None], model: Path, **limits: Any
) -> None:
    """Each row against PEFT with the adapter in `exact`, over the same int8 weights."""
    for ask, folder, answer in zip(asks, exact, house.run(asks, 4, **limits), strict=True):
        oracle = PeftOracle(model, "int8")
        oracle.multiply_exactly()
        peft = oracle.base if folder is None else PeftModel.from_pretrained(oracle.base, folder)
        whole = [*ask.ids, *answer.tokens]
        table_TV = table(peft.eval(), whole)
        wanted = table_TV[:-1].gather(1, torch.tensor(whole[1:])[:, None])[:, 0].tolist()
        mine = [*answer.prompt, *answer.logprobs]
        wrong = [abs(a - b) for a, b in zip(mine, wanted, strict=True)]
        assert max(wrong) < WORST
        assert fmean(wrong) < MEAN


@pytest.mark.parametrize("budget", [512, 11])
def test_on_the_compiled_step(
    budget: int,
    compiled: House,
    on_step: str,
    both: Callable[[str], Both],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of it runs on the packed model."""
    forbid_packed(monkeypatch)
    pair = both(on_step)
    compiled.forget_slots()
    lora, alora = (
        rounded(pair.folder(name), tmp_path / name, compiled.loaded.layout)
        for name in ("lora", "alora")
    )
    asks, exact = [], []
    for row, (name, folder) in enumerate(
        [
            (None, None),
            ("prompt tuning", pair.folder("prompt tuning")),
            ("lora", lora),
            ("prefix tuning", pair.folder("prefix tuning")),
            ("alora", alora),
            ("prompt tuning", pair.folder("prompt tuning")),
        ]
    ):
        ids = calling(5 + 2 * row, 3 + row, 2) if name == "alora" else random_prompt(9 + row, row)
        asks.append(Ask(ids, () if name is None else [(pair.folder(name), 1.0)]))
        exact.append(folder)
    near(compiled, asks, exact, tiny_model(on_step), budget=budget)


def test_on_the_compiled_step_a_row_has_its_bits_in_any_company(
    compiled: House,
    on_step: str,
    both: Callable[[str], Both],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However its prompt and its virtual tokens are cut, and after starting over."""
    forbid_packed(monkeypatch)
    pair = both(on_step)
    compiled.forget_slots()
    names = ("prompt tuning", "prefix tuning", "p-tuning")
    asks = [
        Ask(random_prompt(9 + row, row), [(pair.folder(name), 1.0), (pair.folder("lora"), 0.5)])
        for row, name in enumerate(names)
    ]
    alone = [compiled.run([ask], 4)[0] for ask in asks]
    company = [Ask(random_prompt(12, 9)), *asks, Ask(random_prompt(5, 8), asks[0].adapters[1:])]
    assert compiled.run(company, 4)[1:4] == alone
    assert compiled.run(company, 4, budget=11)[1:4] == alone
    assert compiled.run(company, 4, budget=16, blocks=8)[1:4] == alone
    assert compiled.preemptions > 0


def test_alora_runs_on_the_compiled_step_and_only_from_its_call_on(
    compiled: House,
    on_step: str,
    both: Callable[[str], Both],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit the base before it."""
    forbid_packed(monkeypatch)
    pair, ids = both(on_step), calling(12, 5, 2)
    start = len(ids) - 5 - len(invocation_tokens())
    (base,) = compiled.run([Ask(ids)])
    (called,) = compiled.run([Ask(ids, [(pair.folder("alora"), 1.0)])])
    assert called.prompt[:start] == base.prompt[:start]
    assert called.prompt[start:] != base.prompt[start:]
