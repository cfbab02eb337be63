"""Which path serves which model, and that it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorry.bootstrap import assemble
from lorry.errors import ModelError
from lorry.model import paths, selfcheck
from lorry.model.base_loader import LoadedModel, load
from lorry.model.compiled import library, recipe
from lorry.model.compiled.description import ModelDescription
from lorry.model.compiled.model_structs import ModelStructs
from lorry.model.compiled.suited import suited
from lorry.model.paths import (
    FirstPass,
    Kernels,
    Sizes,
    build,
    checked,
    choose,
    first_pass,
    problem,
    replacer,
)
from lorry.settings import Settings
from support import tiny
from support.compiled import compiled
from support.executor_driver import BLOCK_SIZE, load_tiny
from support.tokenizer import build_tokenizer

Model = Callable[[str], Path]


@pytest.fixture(autouse=True)
def there(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was installed: the best compiled step of this machine, from these sources."""
    name = library.instructions()[0]
    built = compiled(name, tmp_path_factory.mktemp("built"))
    monkeypatch.setattr(library, "find", lambda: (name, built))


def save(folder: Path, family: str = "llama", **config: Any) -> Path:
    made = tiny.family(family).config()
    for name, value in config.items():
        setattr(made, name, value)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    tiny.fill(model, seed=3)
    model.eval().save_pretrained(folder)
    build_tokenizer(add_bos=False).save_pretrained(folder)
    return folder


SIZES = Sizes(8, BLOCK_SIZE, max_slots=2, max_rank=8, max_tokens=64)


def kernels_of(asked: str, loaded: LoadedModel) -> tuple[FirstPass, Kernels]:
    found = first_pass(loaded)
    return found, choose(asked, loaded, found, block_size=BLOCK_SIZE)


def served(asked: str, loaded: LoadedModel) -> tuple[str, str]:
    """What the chosen kernels are said to be, and those that `/info` tells."""
    said: list[str] = []
    paths = checked(loaded, *kernels_of(asked, loaded), SIZES, said.append).paths
    paths.close()
    (line,) = said
    return line.removeprefix("steps run on "), paths.kernels


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


UNSUITED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "experts": (
        "mixtral",
        {"hidden_act": "mish"},
        {},
        "its experts have an activation that is not known",
    ),
    "experts' width": ("mixtral", {"intermediate_size": 104}, {}, "is not a multiple of 16"),
    "unquantized": ("llama", {}, {"quantize": "none"}, "it runs quantized weights on a CPU"),
    "blocks that cross rows": (
        "llama",
        {"intermediate_size": 96},
        {"quantize": "nf4"},
        "some of its linears are in a form that it does not read",
    ),
    "activation": (
        "llama",
        {"hidden_act": "mish"},
        {},
        "its MLP has an activation that is not known",
    ),
    "norms after sums": (
        "opt",
        {"do_layer_norm_before": False},
        {},
        "its norms and residuals are in an unknown order",
    ),
    "a projected embedding": (
        "opt",
        {"word_embed_proj_dim": 32},
        {},
        "something is done to its embeddings",
    ),
    "width": ("llama", {"intermediate_size": 136}, {}, "is not a multiple of 16"),
    "outliers": (
        "llama",
        {},
        {"int8_threshold": 6.0},
        "some of its linears are in a form that it does not read",
    ),
    "a window that is not seen": (
        "gpt_neo",
        {"window_size": 16},
        {},
        "a layer may not see the whole past",
    ),
}


def load_with(folder: Path, **settings: Any) -> LoadedModel:
    base = Settings(model=str(folder), home=folder, device="cpu", dtype="float32", quantize="int8")
    settled = dataclasses.replace(base, **settings)
    return load(settled, lambda _: None, replacer=replacer("auto"))


@pytest.mark.parametrize("name", UNSUITED)
def test_a_model_that_does_not_fit_is_served_on_the_generic_path(name: str, tmp_path: Path) -> None:
    family, config, settings, reason = UNSUITED[name]
    loaded = load_with(save(tmp_path, family, **config), **settings)
    said, kernels = served("auto", loaded)
    assert said.startswith("PyTorch's operations; not the compiled step: ") and reason in said
    assert kernels == "torch"
    with pytest.raises(ModelError, match="--kernels compiled: the compiled step cannot run here"):
        kernels_of("compiled", loaded)


@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("asked", ["auto", "compiled"])
def test_a_model_that_fits_runs_on_the_compiled_step(
    asked: str, quantization: str, tiny_model: Model
) -> None:
    loaded = load_tiny(tiny_model("llama"), quantization=quantization, kernels=asked)
    said = f"the compiled step, {library.instructions()[0]}, 1 thread"
    assert served(asked, loaded) == (said, "compiled")


@pytest.mark.parametrize(
    ("kernels", "quantization", "expected"),
    [
        ("auto", "int8", torch.float16),
        ("compiled", "int8", torch.float16),
        ("auto", "nf4", torch.float16),
        ("torch", "nf4", torch.float32),
        ("torch", "int8", torch.float32),
        ("auto", "none", torch.float32),
    ],
)
def test_the_cache_is_in_half_precision_where_the_compiled_step_runs_and_nowhere_else(
    kernels: str, quantization: str, expected: torch.dtype, tiny_model: Model, tmp_path: Path
) -> None:
    settings = Settings(
        model=str(tiny_model("llama")),
        home=tmp_path,
        device="cpu",
        dtype="float32",
        quantize=quantization,
        kv_cache_memory=1 << 20,
        max_num_seqs=64,
        kernels=kernels,
    )
    said: list[str] = []
    server = assemble(settings, said.append, on_broken=lambda: None)
    cache = server.core.executor.paths.cache
    server.close()
    assert cache.dtype is expected
    # As many tokens as fit: twice as many of half the size.
    size = sum(kv.k_NHD[0].nbytes + kv.v_NHD[0].nbytes for kv in cache.layers)
    assert cache.num_blocks == (1 << 20) // (size * 16)
    (line,) = [line for line in said if line.startswith("KV cache takes")]
    tokens = cache.num_blocks * 16
    assert f"{tokens} tokens of " in line and line.endswith(str(expected).removeprefix("torch."))


def test_a_cache_in_bytes_holds_more_tokens(tiny_model: Model, tmp_path: Path) -> None:
    blocks = {}
    for kind in ("auto", "int8"):
        settings = Settings(
            model=str(tiny_model("llama")),
            home=tmp_path,
            device="cpu",
            dtype="float32",
            quantize="int8",
            kv_cache_memory=1 << 20,
            kv_cache_dtype=kind,
            max_num_seqs=64,
        )
        said: list[str] = []
        server = assemble(settings, said.append, on_broken=lambda: None)
        blocks[kind] = server.core.executor.paths.cache.num_blocks
        assert server.core.base.about["kv_cache_dtype"] == {"auto": "float16"}.get(kind, kind)
        server.close()
    assert any(line.startswith("KV cache takes") and line.endswith("int8") for line in said)
    # Heads of 16 numbers: 18 bytes of each in place of 32.
    assert blocks["int8"] == int(blocks["auto"] * 32 / 18)


@pytest.mark.parametrize(
    ("quantization", "asked", "why"),
    [
        ("int8", "torch", "only the compiled step on a CPU has such a cache"),
        ("none", "auto", "the compiled step cannot run here: "),
        ("none", "compiled", "the compiled step cannot run here: "),
    ],
)
def test_a_cache_in_bytes_is_the_compiled_steps_alone(
    quantization: str, asked: str, why: str, tiny_model: Model
) -> None:
    loaded = load_tiny(tiny_model("llama"), quantization=quantization, kernels=asked)
    with pytest.raises(ModelError, match=f"--kv-cache-dtype int8: {why}"):
        choose(asked, loaded, first_pass(loaded), block_size=BLOCK_SIZE, kv_cache="int8")


def test_without_the_library_the_cache_is_the_models_own(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise library.Missing("it was not built")

    monkeypatch.setattr(library, "find", missing)
    loaded = load_tiny(tiny_model("llama"), quantization="int8", kernels="compiled")
    assert kernels_of("auto", loaded)[1].kv_dtype is torch.float32


def test_the_generic_path_can_be_asked_for(tiny_model: Model) -> None:
    loaded = load_tiny(tiny_model("llama"), quantization="int8", kernels="compiled")
    assert served("torch", loaded) == ("PyTorch's operations, as asked for", "torch")


def test_without_the_library_the_reason_is_said(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise library.Missing("it was not built; install a C compiler and then Lorry again")

    monkeypatch.setattr(library, "find", missing)
    loaded = load_tiny(tiny_model("llama"), quantization="int8", kernels="compiled")
    said, kernels = served("auto", loaded)
    assert said.endswith("not the compiled step: it was not built; install a C compiler and then "
                         "Lorry again")  # fmt: skip
    assert kernels == "torch"
    with pytest.raises(ModelError, match="install a C compiler"):
        kernels_of("compiled", loaded)


def test_a_wrong_answer_of_the_compiled_step_is_refused(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The self-check is what stands between a model that only looks like Llama and a user.
    loaded = load_tiny(tiny_model("llama"), quantization="int8", kernels="compiled")
    found, kernels = kernels_of("compiled", loaded)
    executor = build(loaded, found, kernels, SIZES)
    with torch.no_grad():
        loaded.model.model.layers[1].post_attention_layernorm.weight.neg_()
    # Both see the same weights still.
    assert selfcheck.problem(executor, loaded, []) is None
    loaded.model.model.layers[1].post_attention_layernorm.weight = torch.nn.Parameter(
        loaded.model.model.layers[1].post_attention_layernorm.weight * 2
    )
    wrong = problem(executor, loaded, kernels, SIZES)
    assert wrong is not None and "differ" in wrong
    executor.paths.close()


def test_a_window_longer_than_the_checks_sequences_is_checked_on_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_tiny(
        save(tmp_path, "mistral", sliding_window=300), quantization="int8", kernels="compiled"
    )
    served("compiled", loaded)

    fill = ModelStructs._fill

    def dropped(model: ModelStructs, target: Any, layer: Any) -> None:
        fill(model, target, layer)
        target.attention.window = 0

    monkeypatch.setattr(ModelStructs, "_fill", dropped)
    loaded = load_tiny(tmp_path, quantization="int8", kernels="compiled")
    with pytest.raises(ModelError, match=r"not served: .* differ"):
        served("compiled", loaded)


def test_sizes_that_are_not_as_described_are_served_by_pytorch(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the C code reads a number of them."""

    def wider(*asked: Any) -> ModelDescription:
        found = suited(*asked)
        layers = [dataclasses.replace(one, inner_size=one.inner_size + 16) for one in found.layers]
        return dataclasses.replace(found, inner=found.inner + 16, layers=tuple(layers))

    monkeypatch.setattr(paths, "suited", wider)
    folder = tiny_model("llama")
    with pytest.raises(ModelError, match=r"gate_proj.*: .*features, not"):
        served("compiled", load_tiny(folder, quantization="int8", kernels="compiled"))
    said, kernels = served("auto", load_tiny(folder, quantization="int8", kernels="compiled"))
    assert kernels == "torch" and "features, not" in said


def test_a_wrong_description_is_served_by_pytorch_unless_the_compiled_step_was_asked_for(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with it, no number of it reaches a user."""
    fill = ModelStructs._fill

    def unturned(model: ModelStructs, target: Any, layer: Any) -> None:
        fill(model, target, layer)
        target.rope = -1

    monkeypatch.setattr(ModelStructs, "_fill", unturned)
    folder = tiny_model("llama")
    with pytest.raises(ModelError, match=r"not served: .* differ"):
        served("compiled", load_tiny(folder, quantization="int8", kernels="compiled"))
    loaded = load_tiny(folder, quantization="int8", kernels="compiled")
    found, kernels = kernels_of("auto", loaded)
    said: list[str] = []
    executor = checked(loaded, found, kernels, SIZES, said.append)
    assert executor.paths.kernels == "torch" and executor.paths.compiled is None
    assert executor.paths.cache.dtype is torch.float32
    # Of the size that was paid for.
    assert executor.paths.cache.num_blocks < SIZES.kv_blocks
    (line,) = said
    assert line.startswith("steps run on PyTorch's operations; not the compiled step: ")
    assert "differ" in line
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "not the compiled step" in warning.getMessage()


@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_batched_tokens": 1, "max_num_seqs": 1},
        {"max_model_len": 8, "max_num_batched_tokens": 1, "max_num_seqs": 1},
    ],
    ids=str,
)
def test_the_smallest_server_starts(
    limits: dict[str, int], tiny_model: Model, tmp_path: Path
) -> None:
    # The self-check's steps are larger than any that such a server will run.
    settings = Settings(
        model=str(tiny_model("llama")),
        home=tmp_path,
        device="cpu",
        quantize="int8",
        kv_cache_memory=1 << 20,
        kernels="compiled",
        **limits,
    )
    said: list[str] = []
    server = assemble(settings, said.append, on_broken=lambda: None)
    server.close()
    assert any("the compiled step" in line for line in said)


# ---- the library itself


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(library.Missing, match="it was not built; install a C compiler"):
        library.load(tmp_path / "step_avx2.so")


def test_a_library_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "step_avx2.so"
    path.write_bytes(b"not a library")
    with pytest.raises(library.Missing, match="it cannot be loaded"):
        library.load(path)


def test_a_library_of_other_sources_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _, built = library.find()
    path = Path(built._name)
    library.load(path)
    monkeypatch.setattr(recipe, "sources", lambda: "0" * 16)
    with pytest.raises(library.Missing, match="built from other sources"):
        library.load(path)
