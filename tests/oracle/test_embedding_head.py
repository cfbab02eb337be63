"""Adapters of embeddings and heads on the compiled step, against the packed model alone.

What is compared with PEFT is the packed model (`test_matrix.py`, `test_vocabulary.py`); here both
paths say the same, and what can run on the compiled step does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest
from transformers import AutoModelForCausalLM

from support.compiled import forbid_packed, in_codes, require_compiled_step
from support.executor_driver import Ask, ExecutorDriver
from support.kind import trained_tokens
from support.peft_kinds import KINDS
from support.peft_made import make
from support.prompts import random_prompt

FAMILIES = ("llama", "llama_tied", "granite", "gemma2_odd", "gpt2")
"""The third and fourth do something to embeddings and logits, and the last has positions."""
EMBEDDINGS = ("embeddings target", "dora, embeddings target", "modules_to_save=embeddings")
HEADS = ("modules_to_save=head", "modules_to_save=both", "trainable_token_indices")
"""On a tied base trained tokens are rows of the head, too."""
WORST, MEAN = 0.4, 0.12
"""Of a log-probability. Both paths round activations to 13 bits, where a difference in a sum's last
digit can flip a code, and these adapters double what follows from it: as much as between the
paths for a plain LoRA, whose pair is in 8 bits on one. `test_embedding_head.py` below
`tests/unit/model/compiled` has the exact arithmetic."""


@dataclass(frozen=True)
class Ground:
    compiled: ExecutorDriver
    packed: ExecutorDriver
    made: Mapping[str, Path]
    plain: Path
    family: str

    @property
    def quiet(self) -> float:
        """A cap leaves a quarter of the logits."""
        return 0.25 if self.family.startswith("gemma2") else 1.0

    def alone(self) -> list[Ask]:
        folders = list(self.made.values())
        return [
            Ask([(folder, scale)], random_prompt(7 + i, seed=i))
            for i, folder in enumerate(folders)
            for scale in (1.0, 0.5)
        ]

    def summed(self, names: tuple[str, ...]) -> list[Ask]:
        return [
            Ask([(self.made[name], 1.0), (self.plain, 0.5)], random_prompt(11, seed=30))
            for name in names
        ]


@pytest.fixture(scope="module", params=FAMILIES)
def ground(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ground]:
    require_compiled_step()
    base, root = tiny_model(request.param), tmp_path_factory.mktemp(request.param)
    model = AutoModelForCausalLM.from_pretrained(base)
    made = {
        name: make(KINDS[name], request.param, model, root / str(i)).folder
        for i, name in enumerate(EMBEDDINGS + HEADS)
    }
    with in_codes():
        compiled = ExecutorDriver(base, quantization="int8", kernels="compiled", threads=2)
    packed = ExecutorDriver(base, quantization="int8")
    plain = make(KINDS["lora"], request.param, model, root / "plain").folder
    yield Ground(compiled, packed, made, plain, request.param)
    compiled.close()


@pytest.fixture
def one_path(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_packed(monkeypatch, ground.packed.executor.paths.general)


def apart(want: Sequence[float], have: Sequence[float]) -> list[float]:
    return [abs(w - h) for w, h in zip(want, have, strict=True)]


def compare(ground: Ground, asks: list[Ask]) -> None:
    for chunk in (None, 3, 1):
        expected = ground.packed.score(asks)
        for want, have in zip(expected, ground.compiled.score(asks, chunk=chunk), strict=True):
            wrong = apart(want, have)
            assert max(wrong) < WORST * ground.quiet
            assert fmean(wrong) < MEAN * ground.quiet


@pytest.mark.usefixtures("one_path")
def test_alone_and_in_sums_of_embeddings(ground: Ground) -> None:
    asks = [*ground.alone(), *ground.summed(EMBEDDINGS), Ask([], random_prompt(9, 50))]
    compare(ground, asks)


def test_a_head_in_a_sum(ground: Ground) -> None:
    """It sees the base's logits, without the other adapter's."""
    compare(ground, [*ground.summed(HEADS), Ask([(ground.plain, 1.0)], random_prompt(9, 51))])


def test_others_do_not_notice(ground: Ground) -> None:
    mine = [Ask([], random_prompt(12, 40)), Ask([(ground.plain, -0.5)], random_prompt(17, 42))]
    alone = ground.compiled.score(mine)
    for asks in (ground.alone(), ground.summed(HEADS)):
        assert ground.compiled.score([*asks, *mine])[-2:] == alone


def test_they_are_loud(ground: Ground) -> None:
    """Or the tolerance could hide that nothing was done."""
    for ask in ground.alone():
        (adapted,), (base,) = (
            ground.compiled.score([ask]),
            ground.compiled.score([Ask([], ask.token_ids)]),
        )
        wrong = apart(adapted, base)
        assert max(wrong) > 3 * WORST * ground.quiet
        assert fmean(wrong) > 3 * MEAN * ground.quiet


def test_what_a_sum_brought_to_the_packed_model_can_go_again(tiny_model, ground: Ground) -> None:
    """Its slots there were made in the middle of a step."""
    fresh = ExecutorDriver(tiny_model(ground.family), quantization="int8", kernels="compiled")
    ask = Ask([(ground.plain, 1.0)], random_prompt(9, 52))
    before = fresh.score([ask])
    fresh.score(ground.summed(HEADS[:1]))
    slot = fresh.slot_of(ground.plain)
    fresh.place(slot, ground.made[EMBEDDINGS[0]])
    fresh.place(slot, ground.plain)
    assert fresh.score([ask]) == before
    fresh.close()


def test_a_slot_forgets_its_edges(ground: Ground) -> None:
    slot = ground.compiled.slot_of(ground.plain)
    ask = Ask([(ground.plain, 1.0)], [*trained_tokens(), *random_prompt(9, 52)])
    before = ground.compiled.score([ask])
    for folder in ground.made.values():
        ground.compiled.place(slot, folder)
        assert ground.compiled.score([Ask([(folder, 1.0)], ask.token_ids)]) != before
        ground.compiled.place(slot, ground.plain)
        assert ground.compiled.score([ask]) == before
