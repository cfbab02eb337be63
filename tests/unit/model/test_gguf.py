"""A GGUF file becomes exactly the model that its blocks stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorry.errors import ModelError
from lorry.model import gguf
from lorry.model.base_loader import load
from lorry.settings import Settings
from support.gguf_model import IM_END, POSITIONS, write_gguf
from support.tokenizer import EOS, build_tokenizer


def test_every_weight_and_the_tokenizer_are_the_file_s(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "tiny.gguf")
    said: list[str] = []
    settings = Settings(
        model=str(tmp_path / "tiny.gguf"), home=tmp_path / "home", quantize="none", device="cpu"
    )
    loaded = load(settings, said.append)
    assert loaded.name == "tiny"
    assert loaded.max_model_len == POSITIONS
    assert loaded.eos_token_ids == {EOS, IM_END}
    assert (loaded.tokenizer.bos_token, loaded.tokenizer.eos_token) == ("<s>", "</s>")
    layers = loaded.model.get_submodule("model.layers")
    for name, path in (
        ("blk.0.attn_v", "0.self_attn.v_proj"),
        ("blk.1.ffn_gate", "1.mlp.gate_proj"),
        ("blk.1.ffn_down", "1.mlp.down_proj"),
        ("blk.0.attn_norm", "0.input_layernorm"),
    ):
        weight = layers.get_submodule(path).weight
        assert torch.equal(weight, torch.from_numpy(values[f"{name}.weight"])), name
    head = loaded.model.get_output_embeddings().weight
    assert torch.equal(head, torch.from_numpy(values["output.weight"]))
    text = "How do I cook rice? é😀 <|im_start|>user\n"
    expected = build_tokenizer(add_bos=False)
    assert loaded.tokenizer.encode(text) == expected.encode(text)
    chat = [{"role": "user", "content": "Ahoy"}]
    assert loaded.tokenizer.apply_chat_template(chat, tokenize=False) == (
        expected.apply_chat_template(chat, tokenize=False)
    )
    # The second time it is there, by the digest of its content, whatever it is called.
    assert any(line.startswith("converting") for line in said)
    moved = tmp_path / "moved.gguf"
    (tmp_path / "tiny.gguf").rename(moved)
    said.clear()
    load(
        Settings(model=str(moved), home=tmp_path / "home", quantize="none", device="cpu"),
        said.append,
    )
    assert not any(line.startswith("converting") for line in said)


def test_the_queries_and_keys_are_unpermuted(tmp_path: Path) -> None:
    """GGUF stores them for another rotary layout; mixing it up gives a fluent wrong model."""
    values = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    gguf.convert(tmp_path / "tiny.gguf", tmp_path / "out", lambda _: None)
    from safetensors.torch import load_file as read

    weight = read(tmp_path / "out" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    stored = torch.from_numpy(values["blk.0.attn_q.weight"])
    heads, width = 4, 16
    expected = stored.view(heads, width // 2, 2, 64).transpose(1, 2).reshape(64, 64)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("damage", ["magic", "header", "weights", "architecture"])
def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    content = file.read_bytes()
    if damage == "magic":
        file.write_bytes(b"PK\3\4" + content[4:])
    elif damage == "header":
        file.write_bytes(content[:3000])
    elif damage == "weights":
        file.write_bytes(content[: len(content) * 9 // 10])
    else:
        file.write_bytes(content.replace(b"llama", b"lllll"))
    with pytest.raises(ModelError) as caught:
        load(Settings(model=str(file), home=tmp_path / "home", device="cpu"), lambda _: None)
    assert str(file) in caught.value.message
    models = tmp_path / "home" / "models"
    assert not models.exists() or all(item.suffix == ".lock" for item in models.iterdir())
