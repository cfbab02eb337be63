"""A GGUF file becomes exactly the model that its blocks stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorry.errors import ModelError
from lorry.model import base_loader, gguf, gguf_blocks, gguf_names
from lorry.model.base_loader import load
from lorry.model.memory import digest_of_base
from lorry.model.paths import replacer
from lorry.settings import Settings
from support.gguf_family import FAMILIES, Kind, write_family
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
    tensors = gguf_blocks.weights_of(tmp_path / "out")
    assert tensors is not None
    weight = tensors["model.layers.0.self_attn.q_proj.weight"][...]
    stored = torch.from_numpy(values["blk.0.attn_q.weight"])
    heads, width = 4, 16
    expected = stored.view(heads, width // 2, 2, 64).transpose(1, 2).reshape(64, 64)
    assert torch.equal(weight, expected)


def converted_by_transformers(file: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The oracle: transformers has read the file, all of it at once."""

    def unknown(*_: Any, **__: Any) -> None:
        raise gguf_names.UnmappedTensor("asked for")

    into.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(gguf_names, "stored_tensors", unknown)
        gguf.convert(file, into, lambda _: None)
    return into


def same_files(one: Path, other: Path) -> bool:
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


STREAMED = [family for family in FAMILIES if family != "qwen3_moe"]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, Kind.Q8_0) for family in STREAMED),
        *(("llama", kind) for kind in (Kind.Q4_0, Kind.Q4_K, Kind.F16, Kind.F32)),
        ("bloom", Kind.Q4_0),
    ],
)
def test_it_is_the_model_that_transformers_reads(
    family: str, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permuted queries and keys, reordered heads, offset norms: whatever the family has."""
    write_family(tmp_path / "tiny.gguf", family, kind)
    theirs = converted_by_transformers(tmp_path / "tiny.gguf", tmp_path / "theirs", monkeypatch)
    expected = load_file(theirs / "model.safetensors")
    for dense in (True, False):
        ours = tmp_path / f"ours-{dense}"
        ours.mkdir()
        said: list[str] = []
        told: list[tuple[int, int]] = []
        gguf.convert(
            tmp_path / "tiny.gguf",
            ours,
            said.append,
            lambda _, done, total, told=told: told.append((done, total)),
            dense=dense,
        )
        assert len(said) == 1 and said[0].startswith("converting")
        assert told == sorted(told) and told[-1][0] == told[-1][1]
        assert same_files(ours, theirs)
        weights = gguf_blocks.weights_of(ours)
        in_blocks = not dense and family != "gpt2" and kind is not Kind.F32
        assert (weights is not None) is in_blocks
        found = weights or load_file(ours / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name][...], tensor), name
        if in_blocks:
            size = sum(tensor.numel() for tensor in expected.values())
            assert gguf_blocks.weights_in(ours) == size
            assert (ours / "model.safetensors").stat().st_size < 0.65 * 4 * size


def test_experts_are_read_by_transformers_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(tmp_path / "tiny.gguf", "qwen3_moe", Kind.Q8_0)
    theirs = converted_by_transformers(tmp_path / "tiny.gguf", tmp_path / "theirs", monkeypatch)
    said: list[str] = []
    (tmp_path / "ours").mkdir()
    gguf.convert(tmp_path / "tiny.gguf", tmp_path / "ours", said.append)
    assert "exps.weight is not one tensor" in said[1] and "read into memory" in said[1]
    ours, expected = (load_file(at / "model.safetensors") for at in (tmp_path / "ours", theirs))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
@pytest.mark.parametrize(("family", "kind"), [("llama", Kind.Q4_K), ("tied llama", Kind.Q4_0)])
def test_a_base_of_blocks_is_the_base_of_their_numbers(
    family: str, kind: Kind, quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and from the packed base that the first start keeps, too."""
    write_family(tmp_path / "tiny.gguf", family, kind)
    theirs = converted_by_transformers(tmp_path / "tiny.gguf", tmp_path / "theirs", monkeypatch)
    digests = []
    for model in (theirs, tmp_path / "tiny.gguf", tmp_path / "tiny.gguf"):
        settings = Settings(
            model=str(model), home=tmp_path / "home", quantize=quantize, device="cpu"
        )
        loaded = load(settings, lambda _: None, replacer=replacer("auto", tmp_path / "home"))
        digests.append(digest_of_base(loaded.model))
        assert loaded.model.generation_config.eos_token_id == [EOS, IM_END]
    assert digests[0] == digests[1] == digests[2]


def test_auto_counts_numbers_and_not_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        base_loader, "fitting", lambda precision, **sizes: seen.append(sizes) or (precision, None)
    )
    write_family(tmp_path / "tiny.gguf", "llama", Kind.Q4_0)
    settings = Settings(model=str(tmp_path / "tiny.gguf"), home=tmp_path / "home", device="cpu")
    loaded = load(settings, lambda _: None)
    linears = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256)
    tables = 2 * loaded.config.vocab_size * 256
    assert seen[0]["weights"] == linears + tables + 5 * 256


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
