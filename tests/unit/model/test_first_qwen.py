"""The first Qwen: its formulas written down plainly, against what the server loads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry.cli import main
from lorry.errors import ModelError, UnsupportedModel
from lorry.model import first_qwen
from lorry.model.base_loader import LoadedModel, load
from lorry.model.paths import Kernels, Sizes, checked, first_pass
from lorry.settings import Settings
from lorry_adapters.lora.aliases import split
from lorry_adapters.lora.parts import LoraPair
from support.prompts import random_prompt
from support.tokenizer import VOCAB_SIZE, build_tokenizer

HIDDEN, LAYERS, HEADS, INNER, BASE, EPSILON = 64, 2, 4, 96, 500.0, 1e-5
SIZE = HIDDEN // HEADS
CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "model_type": "qwen",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "kv_channels": SIZE,
    "seq_length": 512,
    "max_position_embeddings": 1024,
    "layer_norm_epsilon": EPSILON,
    "rotary_emb_base": BASE,
    "rotary_pct": 1.0,
    "no_bias": True,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "tokenizer_class": "QWenTokenizer",
}


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, gain: float = 1.6) -> Tensor:
        return torch.randn(*shape, generator=generator) * gain / math.sqrt(shape[-1])

    found = {
        "transformer.wte.weight": draw(VOCAB_SIZE, HIDDEN, gain=8.0),
        "transformer.ln_f.weight": 1 + draw(HIDDEN, gain=0.8),
        "lm_head.weight": draw(VOCAB_SIZE, HIDDEN, gain=3.0),
    }
    for n in range(LAYERS):
        found |= {
            f"transformer.h.{n}.{name}": tensor
            for name, tensor in {
                "ln_1.weight": 1 + draw(HIDDEN, gain=0.8),
                "ln_2.weight": 1 + draw(HIDDEN, gain=0.8),
                "attn.c_attn.weight": draw(3 * HIDDEN, HIDDEN),
                "attn.c_attn.bias": draw(3 * HIDDEN, gain=3.0),
                "attn.c_proj.weight": draw(HIDDEN, HIDDEN),
                "mlp.w1.weight": draw(INNER, HIDDEN),
                "mlp.w2.weight": draw(INNER, HIDDEN),
                "mlp.c_proj.weight": draw(HIDDEN, INNER),
            }.items()
        }
    return found


Delta = Callable[[str, Tensor], Tensor]


def reference(w: dict[str, Tensor], ids: list[int], delta: Delta | None = None) -> Tensor:
    """Logits `[T, V]`. `delta`: what an adapter adds to a module's output."""

    def linear(path: str, x_TI: Tensor) -> Tensor:
        y_TO = F.linear(x_TI, w[f"{path}.weight"], w.get(f"{path}.bias"))
        return y_TO if delta is None else y_TO + delta(path, x_TI)

    def norm(path: str, x_TH: Tensor) -> Tensor:
        scale_T1 = (x_TH.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt()
        return x_TH * scale_T1 * w[f"{path}.weight"]

    def heads(x_TH: Tensor) -> Tensor:
        return x_TH.view(-1, HEADS, SIZE).transpose(0, 1)

    def rotate(x_HTD: Tensor) -> Tensor:
        speed_D = 1.0 / BASE ** (torch.arange(0, SIZE, 2) / SIZE)
        angles_TD = torch.arange(len(ids)).unsqueeze(1) * speed_D
        sin, cos = angles_TD.sin(), angles_TD.cos()
        first, second = x_HTD.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    x_TH = w["transformer.wte.weight"][ids]
    unseen_TT = torch.ones(len(ids), len(ids)).triu(1).bool()
    for n in range(LAYERS):
        at = f"transformer.h.{n}"
        q, k, v = linear(f"{at}.attn.c_attn", norm(f"{at}.ln_1", x_TH)).split(HIDDEN, -1)
        scores_HTT = rotate(heads(q)) @ rotate(heads(k)).transpose(1, 2) / math.sqrt(SIZE)
        seen_HTD = scores_HTT.masked_fill(unseen_TT, -math.inf).softmax(-1) @ heads(v)
        x_TH = x_TH + linear(f"{at}.attn.c_proj", seen_HTD.transpose(0, 1).flatten(1))
        y_TH = norm(f"{at}.ln_2", x_TH)
        gated = linear(f"{at}.mlp.w1", y_TH) * F.silu(linear(f"{at}.mlp.w2", y_TH))
        x_TH = x_TH + linear(f"{at}.mlp.c_proj", gated)
    return linear("lm_head", norm("transformer.ln_f", x_TH))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "first-qwen"
    build_tokenizer(add_bos=False).save_pretrained(base)
    # As in the original's folder: a class that only its own code has.
    content = json.loads((base / "tokenizer_config.json").read_text())
    content |= {
        "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    }
    (base / "tokenizer_config.json").write_text(json.dumps(content))
    for name in ("configuration_qwen.py", "modeling_qwen.py", "tokenization_qwen.py"):
        (base / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (base / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights(), base / "model.safetensors", metadata={"format": "pt"})
    return base


def load_folder(folder: Path, **more: Any) -> LoadedModel:
    own = {"quantize": "none", "device": "cpu", "dtype": "float32", **more}
    return load(Settings(model=str(folder), home=folder / "home", **own), lambda _: None)


def test_it_computes_what_the_formulas_say(folder: Path) -> None:
    loaded = load_folder(folder)
    ids = random_prompt(40, 1)
    # In float64 on both sides: what is left is Qwen2's rotation, which stays in float32.
    exact = {key: tensor.double() for key, tensor in weights().items()}
    with torch.inference_mode():
        got_TV = loaded.model.double()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(got_TV, reference(exact, ids), rtol=0, atol=1e-5)
    assert loaded.layout.architecture == "Qwen2ForCausalLM"
    assert loaded.max_model_len == CONFIG["seq_length"]
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_it_is_served(folder: Path, quantize: str) -> None:
    loaded = load_folder(folder, quantize=quantize)
    assert loaded.quantization == quantize
    kernels = Kernels("torch", loaded.dtype, "")
    served = checked(loaded, first_pass(loaded), kernels, Sizes(8, 4, 1, 4)).paths
    assert served.row_layout == "packed"


def test_weights_in_several_files(folder: Path) -> None:
    every = load_file(folder / "model.safetensors")
    names = sorted(every)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for file, keys in parts.items():
        save_file({key: every[key] for key in keys}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ids = random_prompt(20, 2)
    with torch.inference_mode():
        model = load_folder(folder).model
        got = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(got, reference(weights(), ids), rtol=0, atol=1e-4)


def test_every_module_that_an_adapter_names_is_there(folder: Path) -> None:
    layout = load_folder(folder).layout
    linears = {key.rpartition(".")[0] for key in weights()}
    assert linears == {*layout.aliases, "lm_head"}
    for path, parts in layout.aliases.items():
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == weights()[f"{path}.weight"].shape[0]
        assert all(part.module in layout.modules for part in parts)
    assert layout.aliases["transformer.h.1.mlp.w2"][0].module == "model.layers.1.mlp.gate_proj"


def test_an_adapter_of_the_original_s_modules(folder: Path) -> None:
    """Cut along the aliases and put on the loaded model: what the formulas say of it."""
    loaded = load_folder(folder)
    generator = torch.Generator().manual_seed(5)
    pairs: dict[str, LoraPair] = {}
    for path in loaded.layout.aliases:
        if path.endswith(("c_attn", "c_proj", "w1", "w2")):
            outputs, inputs = weights()[f"{path}.weight"].shape
            a_RI = torch.randn(4, inputs, generator=generator) / math.sqrt(inputs)
            pairs[path] = LoraPair(a_RI, torch.randn(outputs, 4, generator=generator), 0.3)

    def delta(path: str, x_TI: Tensor) -> Tensor:
        if path not in pairs:
            return torch.zeros(())
        pair = pairs[path]
        return pair.scaling * (x_TI @ pair.a_RI.T @ pair.b_OR.T)

    with torch.no_grad():
        for path, pair in pairs.items():
            for name, part in split(pair, loaded.layout.aliases[path]).items():
                module = loaded.model.get_submodule(name)
                module.weight += part.scaling * (part.b_OR @ part.a_RI)
    ids = random_prompt(30, 3)
    with torch.inference_mode():
        got_TV = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    want_TV = reference(weights(), ids, delta)
    assert (want_TV - reference(weights(), ids)).abs().max() > 1.0
    torch.testing.assert_close(got_TV.log_softmax(-1), want_TV.log_softmax(-1), rtol=0, atol=1e-4)


def test_the_tools_know_it_by_the_names_of_its_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_attn"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    at = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight"
    tensors = {at.format(layer, "A"): torch.ones(2, HIDDEN) for layer in range(LAYERS)}
    tensors |= {at.format(layer, "B"): torch.ones(3 * HIDDEN, 2) for layer in range(LAYERS)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    base = ["--base", str(folder), "--home", str(tmp_path / "home")]
    assert main(["adapters", "check", str(adapter), *base]) == 0, capsys.readouterr().out
    assert main(["adapters", "bake", str(adapter), *base, "--out", str(tmp_path / "baked")]) == 1
    assert "a first Qwen, whose files only its own code can load" in capsys.readouterr().err
    assert not (tmp_path / "baked").exists()


def test_a_chat_model_ends_as_its_code_would(folder: Path) -> None:
    (folder / "generation_config.json").write_text(
        json.dumps({"chat_format": "chatml", "eos_token_id": 7})
    )
    assert first_qwen.chat_end(folder) == "<|im_end|>"
    loaded = load_folder(folder)
    assert 7 in loaded.eos_token_ids
    end = loaded.tokenizer.get_vocab().get("<|im_end|>")
    assert end is None or end in loaded.eos_token_ids
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "raw"}))
    assert first_qwen.chat_end(folder) is None


def edit(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def test_what_qwen2_cannot_compute_is_refused(folder: Path) -> None:
    edit(folder, no_bias=False, rotary_pct=0.5)
    with pytest.raises(UnsupportedModel, match=r"no_bias is False.*; rotary_pct is 0\.5"):
        load_folder(folder)
    edit(folder, kv_channels=2 * SIZE)
    with pytest.raises(UnsupportedModel, match="4 heads of 32 are not 64 wide"):
        load_folder(folder)
    edit(folder, hidden_size="wide", seq_length=None)
    with pytest.raises(ModelError, match="hidden_size is 'wide', seq_length is None"):
        load_folder(folder)
    edit(folder)
    with pytest.raises(ModelError, match=r"--max-model-len 513: .* for 512 tokens at most"):
        load_folder(folder, max_model_len=513)


def test_quantized_by_something_else(folder: Path) -> None:
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModel, match="already quantized with gptq"):
        load_folder(folder)


def test_without_a_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json.*docs/bases\.md"):
        load_folder(folder)


def test_tensors_that_are_missing_or_unknown(folder: Path) -> None:
    every = load_file(folder / "model.safetensors")
    inverse = {"transformer.rotary_emb.inv_freq": torch.ones(8)}
    save_file({**every, **inverse}, folder / "model.safetensors", metadata={"format": "pt"})
    load_folder(folder)
    save_file({**every, "transformer.h.0.x.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"not the first Qwen's: transformer\.h\.0\.x\.weight"):
        load_folder(folder)
    del every["transformer.h.1.attn.c_attn.bias"]
    save_file(every, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"k_proj\.bias and 2 more: missing from"):
        load_folder(folder)
