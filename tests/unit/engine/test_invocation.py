"""Where an activated LoRA begins: PEFT's own rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora.variants import calculate_alora_offsets

from lorry.engine.invocation import last_place, uses_of
from lorry.errors import InvocationMissing
from lorry_adapters.registry.record import AdapterRef

few = st.integers(0, 2)


def ref(invocation: Sequence[int] = (), scale: float = 1.0) -> AdapterRef:
    return AdapterRef("legal", 1, "sha256:a", scale, invocation=tuple(invocation))


@given(st.lists(few, min_size=1, max_size=12), st.lists(few, min_size=1, max_size=4))
def test_the_last_place_is_pefts(prompt: list[int], called: list[int]) -> None:
    config = {"a": LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=called)}
    (offset,) = calculate_alora_offsets(config, "a", torch.tensor([prompt]))
    expected = None if offset is None else len(prompt) - offset
    assert last_place(called, prompt) == expected


def test_starts_stand_beside_the_adapters() -> None:
    prompt = [4, 7, 8, 5, 7, 8, 6]
    refs = [ref(), ref([7, 8]), ref([6])]
    assert [use.start for use in uses_of(refs, prompt)] == [0, 4, 6]
    assert [use.start for use in uses_of([ref(), ref()], prompt)] == [0, 0]
    assert uses_of([], prompt) == ()


def test_starts_are_positions_behind_the_virtual_tokens() -> None:
    prompt = AdapterRef("prompt", 1, "sha256:b", 1.0, virtual_tokens=10)
    off = replace(prompt, scale=0.0)
    called = ref([7])
    assert [use.start for use in uses_of([prompt, called], [4, 7])] == [0, 11]
    assert [use.start for use in uses_of([off, called], [4, 7])] == [0, 1]


def test_a_call_that_is_not_there_is_named() -> None:
    with pytest.raises(InvocationMissing, match=r"'legal' is an activated LoRA.*\[7, 9\]") as error:
        uses_of([ref(), ref([7, 9])], [7, 8, 9])
    assert error.value.param == "adapter"


def test_at_scale_zero_nobody_needs_to_call() -> None:
    (use,) = uses_of([ref([7, 9], scale=0.0)], [7, 8, 9])
    assert use.start == 0
