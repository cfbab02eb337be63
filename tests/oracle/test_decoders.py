"""Every decoder class that transformers has, made tiny from its config: as transformers answers
to 1e-4, or refused by name. None is served wrong.

Prompts three times as long as every window and chunk, read in pieces, alone and mixed, and
answers to them; with a LoRA of PEFT's on every linear and on experts; and int8 and nf4, against
the same quantized modules. `support/decoder_lists.py` has what is not served packed, and is held
to exactly. A run takes a part (`decoder_outcomes.chosen`); all of it, variants and every kind of
rotary frequencies included: `pytest tests/oracle/test_decoders.py --whole-decoders`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from bitsandbytes.functional import has_avx512bf16

from support import decoder_lists as lists
from support import decoder_outcomes as outcomes
from support import decoders
from support.compiled import in_codes
from support.decoder_bench import Outcome, Way, examine, examine_adapter
from support.decoder_outcomes import Case, Question
from support.decoders import Decoder

TOLERANCE = 1e-4
ROUNDED = 0.05
"""Activations are rounded to 8 bits, and by bitsandbytes' 4-bit product to bfloat16 on processors
that have it (0.028 seen there). A difference in the last digit of a sum can flip a
code: 0.012 seen. What is served wrong is 0.4 off at least."""

LOUD = {"granitemoe_swa": 2}
"""How many times as far two right answers are apart on the compiled step: its logits are louder."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--whole-decoders")
        found = list(outcomes.cases() if whole else outcomes.chosen())
        metafunc.parametrize("case", found, ids=[case.name for case in found])


def test_decoder(case: Case, tmp_path: Path) -> None:
    outcome = ask(case, tmp_path)
    if outcome.way is Way.REFUSED:
        assert case.refused is not None, f"{case.name} is refused: {outcome.reason}"
        assert case.refused in outcome.reason
        return
    assert case.refused is None, f"{case.name} is served now: take it off the list"
    times = (LOUD.get(case.decoder.name) or 1) if case.question is Question.COMPILED else 1
    assert outcome.error < times * tolerance_of(case.question)
    if case.question is Question.COMPILED:
        assert outcome.way == Way.COMPILED
        # As served the bits of activations are fewer, and the self-check must know.
        assert examine(tmp_path / "base", Question.INT8, "compiled").way == Way.COMPILED
    else:
        assert outcome.way == (Way.PADDED if case.padded else Way.PACKED)


def tolerance_of(question: Question) -> float:
    if question is Question.COMPILED:
        return ROUNDED
    rounded = question is Question.INT8 or (question is Question.NF4 and has_avx512bf16())
    return ROUNDED if rounded else TOLERANCE


def ask(case: Case, tmp_path: Path) -> Outcome:
    folder = decoders.save(case.decoder, tmp_path / "base")
    match case.question:
        case Question.BASE:
            return examine(folder)
        case Question.ADAPTER:
            return examine_adapter(folder, tmp_path / "adapter")
        case Question.EXPERTS:
            return examine_adapter(folder, tmp_path / "adapter", experts=True)
        case Question.COMPILED:
            with in_codes():
                return examine(folder, Question.INT8, "compiled")
    return examine(folder, case.question)


@pytest.mark.parametrize("name", sorted(lists.NOT_TINY))
def test_what_cannot_be_made_tiny(name: str) -> None:
    model_type, _, variant = name.partition(", ")
    every = [*decoders.decoders(), *decoders.variants()]
    decoder = next(d for d in every if d == Decoder(model_type, variant))
    with pytest.raises(Exception) as caught:
        decoders.build(decoder)
    assert lists.NOT_TINY[name] in str(caught.value)


def test_nothing_is_listed_that_is_no_decoder() -> None:
    rope = {f"{d.name}, {kind}" for d in decoders.decoders() for kind in decoders.ROPE}
    known = {d.name for d in [*decoders.decoders(), *decoders.variants()]} | rope
    listed = [
        lists.ADAPTER_REFUSED, lists.NOT_TINY, lists.REFUSED, lists.PADDED, lists.UNDESCRIBED,
        outcomes.HARD,
    ]  # fmt: skip
    for names in listed:
        assert {*names} <= known
    assert not {*lists.PADDED} & {*lists.REFUSED}
    assert not {*lists.UNDESCRIBED} & {*lists.REFUSED}


def test_the_table_is_in_the_readme() -> None:
    assert outcomes.written() == outcomes.table(), "run: make docs"
