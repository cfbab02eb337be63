"""A base that neither path serves right is refused at start-up, by its name and with the reasons.

Recurrent models keep a state instead of keys and values; in one that mixes both, sequences
packed in one row flow into each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lorry.bootstrap import assemble
from lorry.errors import UnsupportedModel
from lorry.settings import Settings
from support import tiny
from support.tokenizer import BOS, EOS, PAD, VOCAB_SIZE, build_tokenizer

_SMALL = {"hidden_size": 64, "num_hidden_layers": 4}
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
RECURRENT: dict[str, dict[str, Any]] = {
    "Mamba": {**_SMALL, "state_size": 8},
    "Rwkv": {**_SMALL, "attention_hidden_size": 64},
    "Lfm2": {**_SMALL, **_ATTENTION, "layer_types": ["conv", "full_attention"] * 2},
    "RecurrentGemma": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "lru_width": 64,
    },
}
NO_CACHE = "attention does not go through .*; padded, it keeps no keys and values in"
MIXED = "keeps a state .*; padded, its? "
REASONS = {"Mamba": NO_CACHE, "Rwkv": NO_CACHE, "Lfm2": MIXED, "RecurrentGemma": MIXED}


@pytest.mark.parametrize("family", RECURRENT)
def test_a_recurrent_model(family: str, tmp_path: Path) -> None:
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB_SIZE, **special, **RECURRENT[family]
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tiny.fill(model, seed=0)
    model.save_pretrained(tmp_path / "base")
    build_tokenizer(add_bos=False).save_pretrained(tmp_path / "base")
    settings = Settings(
        model=str(tmp_path / "base"),
        home=tmp_path,
        device="cpu",
        dtype="float32",
        quantize="none",
        max_model_len=256,
    )
    message = f"{family}ForCausalLM is not served: packed in one row, .*{REASONS[family]}"
    with pytest.raises(UnsupportedModel, match=message):
        assemble(settings, lambda line: None, on_broken=lambda: None)
