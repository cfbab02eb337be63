"""A base with a vision part serves text, and adapters of its text model under every name that it
has had: each equal to PEFT's on the text model alone. What would act on the other part alone is
refused by name, and converted to its text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorry_adapters.lora.spelling import Spelling
from lorry_adapters.tools.convert import convert
from support import peft_made, wrapped_base
from support.matrix_bench import Bench, bench
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS
from support.peft_made import Made

TOLERANCE = 1e-4
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "its own": lambda path: path,
    "within the wrapper": lambda path: path.replace("model.", "model.language_model.", 1),
    "before transformers 4.52": lambda path: f"language_model.{path}",
}
LANGUAGE = r".*language_model.*\.(q_proj|v_proj|down_proj)"
KINDS_HERE = (
    "lora",
    "rank_pattern",
    "layers_to_transform",
    "all-linear",
    "dora",
    "lm_head target",
    "embeddings target",
    "modules_to_save=both",
    "modules_to_save=norm",
    "trainable_token_indices",
    "ia3, feedforward",
    "vera",
    "waveft",
    "ln_tuning",
    "trainable_tokens",
)


@pytest.fixture(scope="module")
def whole() -> Any:
    return wrapped_base.build()


@pytest.fixture(scope="module")
def lorry(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("wrapped")
    text = wrapped_base.text_of(whole)
    with bench(wrapped_base.save(whole, home / "base"), "gemma3", home, base=text) as found:
        yield found


def served(lorry: Bench, made: Made, folder: Path | None = None) -> dict[str, Any]:
    answer = lorry.upload("this", folder or made.folder)
    assert answer.status_code == 201, answer.text
    try:
        assert lorry.error(lorry.ask(("this", 1.0)), made) < TOLERANCE
        base, one, plain = lorry.ask_together([None, ("this", 1.0), ("plain", 1.0)])
        assert lorry.error(base, None) < TOLERANCE
        assert lorry.error(one, made) < TOLERANCE
        assert lorry.error(plain, lorry.plain) < TOLERANCE
        return answer.json()  # type: ignore[no-any-return]
    finally:
        lorry.remove("this")


def renamed(made: Made, spelling: str, folder: Path) -> Path:
    shutil.copytree(made.folder, folder)
    new = SPELLINGS[spelling]
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {PREFIX + new(key.removeprefix(PREFIX)): tensor for key, tensor in tensors.items()},
        folder / WEIGHTS,
    )
    return folder


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_an_adapter_of_the_text_model(kind: str, lorry: Bench) -> None:
    served(lorry, lorry.make(KINDS[kind], seed=3))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_name_that_the_text_model_has_had(
    spelling: str, lorry: Bench, tmp_path: Path
) -> None:
    made = lorry.make(KINDS["lora"], seed=4)
    folder = renamed(made, spelling, tmp_path / "renamed")
    if spelling != "its own":
        edit_config(folder, target_modules=r".*language_model.*(self_attn|mlp)\.\w+_proj")
    assert served(lorry, made, folder)["warnings"] == []


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("names", Spelling)
def test_converted_to_any_of_them(
    names: Spelling, spelling: str, lorry: Bench, whole: Any, tmp_path: Path
) -> None:
    """PEFT finds a place for every key on the model whose names they are."""
    made = lorry.make(KINDS["rank_pattern"], seed=5)
    folder = renamed(made, spelling, tmp_path / "renamed")
    if spelling != "its own":
        edit_config(folder, target_modules=r".*language_model.*(self_attn|mlp)\.\w+_proj")
    asked = None if names is Spelling.OLDER else names
    own = {"its own": Spelling.TEXT, "within the wrapper": Spelling.WRAPPER}.get(spelling)
    if asked is own or (asked is None and own is not None):
        return  # there is nothing to change
    convert(folder, names=asked).save(tmp_path / "out")
    served(lorry, made, tmp_path / "out")
    model = lorry.base if asked is Spelling.TEXT else whole
    loaded = peft.PeftModel.from_pretrained(pristine(model), tmp_path / "out").eval()
    ids = list(range(5, 30))
    found = peft_made.prompt_logprobs(loaded, ids)
    assert found == pytest.approx(made.logprobs(ids), abs=TOLERANCE)


def pristine(model: Any) -> Any:
    import copy

    return copy.deepcopy(model)


def of_the_whole(
    whole: Any, folder: Path, *, acts: bool, **fields: Any
) -> tuple[Path, peft.PeftModel]:
    """Trained on the wrapper with a plain list of names, as its vision part has some, too."""
    targets = ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, **fields)
    model = peft.get_peft_model(pristine(whole), config)
    peft_made.fill(model, 0.3, seed=6)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "vision_tower" in path and "lora_B" in path and not acts:
                parameter.zero_()
    model.eval().save_pretrained(folder)
    return folder, model.requires_grad_(False)


def test_pairs_of_the_vision_part_that_were_not_trained_are_left_out(
    lorry: Bench, whole: Any, tmp_path: Path
) -> None:
    folder, model = of_the_whole(whole, tmp_path / "a", acts=False)
    (warning,) = served(lorry, Made(folder, KINDS["lora"], model))["warnings"]
    assert "no text reaches these modules of the base" in warning and "are left out" in warning
    assert "model.vision_tower.encoder.layers.0.self_attn." in warning


def test_pairs_of_the_vision_part_that_act_are_refused_and_converted(
    lorry: Bench, whole: Any, tmp_path: Path
) -> None:
    folder, model = of_the_whole(whole, tmp_path / "a", acts=True)
    answer = lorry.upload("this", folder)
    assert answer.status_code == 422
    (problem,) = answer.json()["error"]["problems"]
    assert "model.vision_tower.encoder.layers.0.self_attn.q_proj" in problem
    assert "lorry adapters convert FOLDER --text-only --out DIR" in problem
    assert "target_modules within model.language_model only" in problem
    result = convert(folder, names=Spelling.TEXT)
    assert any("keys left out, of parts that no text reaches" in one for one in result.changes)
    result.save(tmp_path / "text")
    served(lorry, Made(tmp_path / "text", KINDS["lora"], model))


@pytest.mark.parametrize("saved", ["multi_modal_projector", "mm_soft_emb_norm"])
def test_a_saved_module_of_the_other_part_is_refused(
    saved: str, lorry: Bench, whole: Any, tmp_path: Path
) -> None:
    folder, _ = of_the_whole(whole, tmp_path / "a", acts=False, modules_to_save=[saved])
    answer = lorry.upload("this", folder)
    assert answer.status_code == 422
    assert saved in answer.json()["error"]["message"]


def test_trained_on_the_language_part_alone(lorry: Bench, whole: Any, tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=LANGUAGE)
    model = peft.get_peft_model(pristine(whole), config)
    peft_made.fill(model, 0.3, seed=7)
    model.eval().save_pretrained(tmp_path / "a")
    made = Made(tmp_path / "a", KINDS["lora"], model.requires_grad_(False))
    assert served(lorry, made)["warnings"] == []


def test_a_key_of_the_vision_part_beside_the_text_s_own_names_is_refused(
    lorry: Bench, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lorry.make(KINDS["lora"], seed=4).folder, tmp_path / "a"))
    tensors = load_file(folder / WEIGHTS)
    sees = f"{PREFIX}model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_"
    tensors[f"{sees}A.weight"] = torch.ones(8, 32)
    tensors[f"{sees}B.weight"] = torch.ones(32, 8)
    save_file(tensors, folder / WEIGHTS)
    answer = lorry.upload("this", folder)
    assert answer.status_code == 422
    assert "vision_tower" in answer.text and "--text-only" in answer.text
    convert(folder, names=Spelling.TEXT).save(tmp_path / "text")
    assert json.loads((tmp_path / "text/adapter_config.json").read_text())["r"] == 8
    served(lorry, lorry.make(KINDS["lora"], seed=4), tmp_path / "text")
