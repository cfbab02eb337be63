"""What is compared with is transformers' own choice, and the model is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorry.model import padded, selfcheck
from lorry.model.attention import NAME
from lorry.model.plain_attention import is_plain, plain
from support import decoders
from support.decoders import Decoder
from support.executor_driver import Ask, ExecutorDriver, load_tiny
from support.prompts import random_prompt

CPU = torch.device("cpu")


def test_a_model_of_several_parts_is_left_on_our_attention(tmp_path: Path) -> None:
    """The text part's config says it, not the whole model's: restored from that one, rows ran
    packed by transformers' attention, each seeing all before it."""
    decoders.save(Decoder("got_ocr2"), tmp_path)
    ours = ExecutorDriver(tmp_path)
    before = ours.score([Ask((), random_prompt(20, 1)), Ask((), random_prompt(9, 2))])
    assert selfcheck.problem(ours.executor, ours.loaded, []) is None
    assert ours.executor.paths.row_layout == "packed"
    assert ours.loaded.model.model.language_model.config._attn_implementation == NAME
    assert ours.score([Ask((), random_prompt(20, 1)), Ask((), random_prompt(9, 2))]) == before


def test_distances_that_eager_attention_adds_twice(tmp_path: Path) -> None:
    """Falcon's with ALiBi: served as transformers serves it by default, which is how it was
    trained."""
    decoders.save(Decoder("falcon", "alibi", {"alibi": True}), tmp_path)
    assert not is_plain(load_tiny(tmp_path).model, CPU)
    ours = ExecutorDriver(tmp_path, is_checked=True)
    assert ours.executor.paths.row_layout == "padded"
    assert ours.loaded.model.config._attn_implementation == "sdpa"
    ids = random_prompt(30, 1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        table_TV = theirs(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    wanted = [float(table_TV[i, token]) for i, token in enumerate(ids[1:])]
    beside = Ask((), random_prompt(11, 2))
    assert ours.score([Ask((), ids), beside], chunk=7)[0] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("model_type", ["falcon", "gpt_neo", "bloom"])
def test_where_both_agree_rows_are_padded_by_eager_attention(
    model_type: str, tmp_path: Path
) -> None:
    loaded = load_tiny(decoders.save(Decoder(model_type), tmp_path))
    padded.measure(loaded)
    assert loaded.model.config._attn_implementation == padded.ATTENTION


def test_after_a_failure_too(tmp_path: Path) -> None:
    loaded = load_tiny(decoders.save(Decoder("llama"), tmp_path))
    with pytest.raises(ZeroDivisionError), plain(loaded.model):
        assert loaded.model.config._attn_implementation == "sdpa"
        raise ZeroDivisionError
    assert loaded.model.config._attn_implementation == "eager"
