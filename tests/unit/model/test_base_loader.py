"""Any base by folder: described right, refused by name where it cannot be loaded safely."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, PreTrainedTokenizerFast

from lorry.errors import ModelError, UnsupportedModel
from lorry.model.base_loader import LoadedModel, load
from lorry.model.length import UNSTATED
from lorry.settings import Settings
from support.tokenizer import EOS

TinyModel = Callable[[str], Path]


@pytest.fixture
def folder(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A tiny Llama's folder that the test may spoil."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "tiny-llama"))


def load_folder(folder: Path, **more: object) -> LoadedModel:
    own = {"quantize": "none", "device": "cpu", **more}
    return load(Settings(model=str(folder), home=folder / "home", **own), lambda _: None)  # type: ignore[arg-type]


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    file.write_text(json.dumps(content))


def test_a_folder_is_loaded_and_described(folder: Path) -> None:
    said: list[str] = []
    settings = Settings(model=str(folder), home=folder / "home", quantize="none", device="cpu")
    loaded = load(settings, said.append)
    assert loaded.name == loaded.layout.name == "tiny-llama"
    assert loaded.source == str(folder) and loaded.revision is None
    assert isinstance(loaded.tokenizer, PreTrainedTokenizerFast)
    assert loaded.max_model_len == 512
    assert loaded.eos_token_ids == {EOS}
    assert loaded.config.model_type == "llama"
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    assert said[0] == "loading tiny-llama: unquantized weights, float32 on cpu"
    assert said[-1].startswith("tiny-llama takes ") and "embeddings 96.0 KiB" in said[-1]
    assert not (folder / "home").exists(), "a local folder is served from where it is"


def test_the_name_in_the_api_is_the_user_s_if_given(folder: Path) -> None:
    assert load_folder(folder, served_model_name="me/base").layout.name == "me/base"


def test_every_end_of_text_token_counts(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[4, 5])
    assert load_folder(folder).eos_token_ids == {4, 5, EOS}
    (folder / "generation_config.json").unlink()
    assert load_folder(folder).eos_token_ids == {EOS}


def test_the_length_is_the_model_s_or_less(folder: Path) -> None:
    assert load_folder(folder, max_model_len=100).max_model_len == 100
    assert load_folder(folder, max_model_len=512).max_model_len == 512
    with pytest.raises(ModelError, match=r"--max-model-len 513: .* made for 512 tokens at most"):
        load_folder(folder, max_model_len=513)


def test_gpt2_calls_its_length_otherwise_and_bloom_states_none(tiny_model: TinyModel) -> None:
    assert load_folder(tiny_model("gpt2")).max_model_len == 512
    assert load_folder(tiny_model("bloom")).max_model_len == UNSTATED
    assert load_folder(tiny_model("bloom"), max_model_len=64).max_model_len == 64


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    loaded = load_folder(folder, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_the_attention_function_is_the_one_asked_for(folder: Path) -> None:
    calls = []

    def counting(
        module: torch.nn.Module, query: torch.Tensor, *rest: object, **more: object
    ) -> object:
        calls.append(type(module).__name__)
        return transformers.models.llama.modeling_llama.eager_attention_forward(
            module, query, *rest, **more
        )

    AttentionInterface.register("counting", counting)
    settings = Settings(model=str(folder), home=folder / "home", quantize="none", device="cpu")
    model = load(settings, lambda _: None, attention="counting").model
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    assert calls == ["LlamaAttention"] * 2


def test_an_adapter_is_no_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter, not a base"):
        load_folder(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=r"only as pickles \(pytorch_model.bin\)"):
        load_folder(folder)


def test_code_in_the_repository_is_refused_and_not_run(folder: Path) -> None:
    trap = f"open({str(folder / 'ran')!r}, 'w')\n"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py"):
        (folder / name).write_text(trap)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(trap)
    modules = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    # A type that transformers knows runs transformers' code, whatever else lies there.
    edit(folder / "config.json", auto_map=modules)
    assert load_folder(folder).layout.architecture == "LlamaForCausalLM"
    edit(folder / "config.json", model_type="own", architectures=["M"])
    with pytest.raises(UnsupportedModel, match=r"\(own\) needs code from its own repository"):
        load_folder(folder)
    edit(folder / "config.json", model_type="llama", auto_map=None)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["tokenization_own.Own", None]},
    )
    with pytest.raises(ModelError):
        load_folder(folder)
    assert not (folder / "ran").exists()


def test_a_type_that_transformers_does_not_know(folder: Path) -> None:
    edit(folder / "config.json", model_type="llama9000")
    with pytest.raises(UnsupportedModel, match="knows no model of type llama9000"):
        load_folder(folder)


def test_a_model_that_generates_no_text(folder: Path) -> None:
    transformers.T5Config().save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match="type t5, which is not a causal language model"):
        load_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": 3}', '{"model_type": "llama"'])
def test_a_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_transformers_would_not_read_is_named(folder: Path, name: str, encoding: str) -> None:
    """It takes a generation_config.json that it cannot read for none at all."""
    file = folder / name
    file.write_text(file.read_text("utf-8"), encoding)
    (folder / "notes.json").write_text("{}", encoding)
    with pytest.raises(ModelError, match=rf"/{name} is UTF-.*save it again as UTF-8"):
        load_folder(folder)
    file.write_text(file.read_text(encoding), "utf-8")
    load_folder(folder)


def test_a_config_with_impossible_numbers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers="two")
    with pytest.raises(ModelError):
        load_folder(folder)


def test_weights_that_are_missing_are_never_random(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    kept = {key: value for key, value in weights.items() if key != name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name}: missing from its files"):
        load_folder(folder)
    save_file({**kept, name: weights[name][:7].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name}: of another shape in its files"):
        load_folder(folder)


def test_weights_that_are_cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_folder(folder)
    file.unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_folder(folder)


def test_a_tokenizer_that_is_missing_or_another_s(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=100)
    with pytest.raises(UnsupportedModel, match=r"knows token 383, .* 100 only"):
        load_folder(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be read"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("./nowhere", "there is no folder and no file nowhere"),
        ("/nowhere/at/all", "there is no folder and no file /nowhere/at/all"),
        ("nowhere.gguf", "there is no folder and no file nowhere.gguf"),
        ("bad id!", "is no alias, no file and no hub id"),
        ("org/name", "org/name is no alias (smollm2-135m) and no folder here, it is not in the"),
    ],
)
def test_a_model_that_is_nowhere(
    model: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(Settings(model=model, home=tmp_path), lambda _: None)
    assert problem in caught.value.message and "\n" not in caught.value.message


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load(Settings(model=str(tmp_path / "model.bin"), home=tmp_path), lambda _: None)


def test_a_revision_is_for_the_hub_only(folder: Path) -> None:
    with pytest.raises(ModelError, match="--revision main: only a model from the hub"):
        load_folder(folder, revision="main")


def test_it_may_have_several(folder: Path) -> None:
    loaded = load_folder(folder, served_model_name="base, me/base,base")
    assert (loaded.name, loaded.other_names, loaded.repository) == ("base", ("me/base",), None)
    with pytest.raises(ModelError, match="has an empty name"):
        load_folder(folder, served_model_name="base,,other")
