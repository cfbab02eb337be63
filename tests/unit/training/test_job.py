"""A run against a loop written out by hand, its end against the server's own check, and what
interrupts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorry.cli import main
from lorry.errors import TrainingError
from lorry.model.base_source import BaseSource
from lorry.training import job
from lorry.training.monitor import TrainingProgress
from lorry.training.training_recipe import Schedule, TrainingMethod

PAIRS = [
    {"prompt": f"How do I cook {what}?", "completion": f"Arr, boil the {what}, matey."}
    for what in ("rice", "an egg", "the harbour", "a lorry", "the gate", "water")
]

FULL = {"batch": 6, "schedule": Schedule.CONSTANT, "warm_up": 0.0, "learning_rate": 1e-3, "rank": 4}
"""All six examples in each step: their order changes nothing."""

Train = Callable[..., job.Trained]


def silent(progress: TrainingProgress) -> None:
    pass


@pytest.fixture(autouse=True)
def in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorry.training.adapter_model._dtype", lambda: torch.float32)


@pytest.fixture
def train(source: BaseSource, lines, tmp_path: Path) -> Train:
    """`train("name", steps=5)`: a run over PAIRS into a folder of that name."""

    def run(
        name: str,
        *,
        rows: Any = PAIRS,
        tell: Callable[[TrainingProgress], None] = silent,
        resume: bool = False,
        validation: Any = None,
        **given: Any,
    ) -> job.Trained:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        prepared = job.prepare(source, lines(*rows), {**FULL, **given}, validation=validation)
        return job.run(prepared, folder, tell, resume=resume)

    return run


def weights(trained: job.Trained) -> dict[str, torch.Tensor]:
    return load_file(trained.folder / "adapter_model.safetensors")


def losses(trained: job.Trained) -> list[float]:
    return [one["loss"] for one in trained.record["curve"] if one["loss"] is not None]


def by_hand(source: BaseSource, data: Path, steps: int, quantize: str) -> tuple[list[float], Any]:
    """PEFT and AdamW without Trainer: the losses, and the adapter's weights by name."""
    sequences = job.prepare(source, data, dict(FULL)).training
    more: dict[str, Any] = {}
    if quantize == "nf4":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32, **more)
    if quantize == "nf4":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    # bitsandbytes computes in another way in evaluation mode.
    model = get_peft_model(base, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    learned = sum(sum(one.learned) for one in sequences)
    found = []
    for _ in range(steps):
        total = torch.zeros(())
        for one in sequences:
            ids_T = torch.tensor(one.ids)
            logits_TV = model(input_ids=ids_T[None]).logits[0, :-1]
            scored_T = torch.nn.functional.cross_entropy(logits_TV, ids_T[1:], reduction="none")
            total = total + scored_T[torch.tensor(one.learned)[1:]].sum()
        loss = total / learned
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return found, {name.replace(".default", ""): p.detach() for name, p in named.items()}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_twenty_steps_equal_the_same_loop_by_hand(
    train: Train, source: BaseSource, lines, quantize: str, accumulation: int
) -> None:
    """Sequences of a batch are padded, and accumulated in parts; by hand each is alone."""
    expected, tensors = by_hand(source, lines(*PAIRS), 20, quantize)
    trained = train("a", steps=20, quantize=quantize, accumulation=accumulation)
    assert losses(trained) == pytest.approx(expected, abs=1e-5)
    found = weights(trained)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_recomputed_activations_give_the_same_weights(train: Train, quantize: str) -> None:
    kept = weights(train("a", steps=5, quantize=quantize))
    for name, tensor in weights(train("b", steps=5, quantize=quantize, checkpointing=True)).items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=1e-6)


def test_the_same_run_gives_the_same_bytes_and_another_seed_others(train: Train) -> None:
    first, again, other = (
        (
            train(name, steps=4, batch=2, dropout=0.1, seed=seed).folder
            / "adapter_model.safetensors"
        ).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [3, 7, 10])
def test_an_interrupted_run_goes_on_to_the_same_bytes(train: Train, at: int) -> None:
    settings = {
        "steps": 12,
        "batch": 2,
        "dropout": 0.1,
        "schedule": Schedule.COSINE,
        "warm_up": 0.1,
    }
    undisturbed = train("a", **settings)

    def kill(progress: TrainingProgress) -> None:
        if progress.step == at:
            raise Killed

    with pytest.raises(Killed):
        train("b", tell=kill, **settings)
    told: list[int] = []
    resumed = train("b", resume=True, tell=lambda one: told.append(one.step), **settings)
    assert 1 < told[0] <= at
    name = "adapter_model.safetensors"
    assert (resumed.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes()
    assert not (resumed.folder / job.CHECKPOINTS).exists()


def test_another_recipe_does_not_go_on_with_a_run(train: Train) -> None:
    def kill(progress: TrainingProgress) -> None:
        if progress.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train("a", steps=6, tell=kill)
    with pytest.raises(TrainingError, match="there is rank 8, was 4"):
        train("a", steps=6, rank=8, resume=True)
    assert (train("a", steps=6, resume=True).folder / "adapter_config.json").exists()


def test_at_step_0_the_model_is_the_base(source: BaseSource) -> None:
    from lorry.training.adapter_model import loaded, with_adapter
    from lorry.training.training_recipe import TrainingRecipe

    ids_1T = torch.arange(5, 25)[None]
    for method in (
        TrainingMethod.LORA,
        TrainingMethod.RSLORA,
        TrainingMethod.DORA,
        TrainingMethod.IA3,
    ):
        recipe = TrainingRecipe(method=method)
        base = loaded(source.folder, recipe)
        with torch.no_grad():
            expected = base(ids_1T).logits
            found = with_adapter(base, recipe)(ids_1T).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_only_the_adapter_learns(train: Train, source: BaseSource, quantize: str) -> None:
    """No byte of the base changes, whatever it is quantized to."""
    kept: dict[str, Any] = {}

    def look(progress: TrainingProgress) -> None:
        kept.setdefault("first", _base_bytes())
        kept["last"] = _base_bytes()

    def _base_bytes() -> dict[str, bytes]:
        import gc

        (model,) = (one for one in gc.get_objects() if type(one) is PeftModelType)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
        return {
            name: parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()
            for name, parameter in model.named_parameters()
            if "lora_" not in name
        }

    from peft import PeftModelForCausalLM as PeftModelType

    train("a", steps=3, quantize=quantize, tell=look)
    assert len(kept["first"]) > 10
    assert kept["first"] == kept["last"]


def test_a_tiny_batch_is_learned_by_heart(train: Train) -> None:
    trained = train("a", rows=PAIRS[:1], batch=1, steps=60, rank=16, learning_rate=1e-2)
    assert losses(trained)[0] > 3
    assert losses(trained)[-1] < 0.05


def test_two_adapters_answer_each_in_its_way(train: Train, source: BaseSource) -> None:
    answers = {"a": "Arr!", "b": "Pray, sir."}
    prompt = [{"role": "user", "content": "Rice?"}]
    said = {}
    for name, answer in answers.items():
        row = {"messages": [*prompt, {"role": "assistant", "content": answer}]}
        trained = train(name, rows=[row], batch=1, steps=60, rank=16, learning_rate=1e-2)
        base = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, trained.folder)
        tokenizer = job.AutoTokenizer.from_pretrained(source.folder)
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids_1T = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        out_1T = model.generate(input_ids=ids_1T, max_new_tokens=20, do_sample=False)
        said[name] = tokenizer.decode(out_1T[0, ids_1T.shape[1] :], skip_special_tokens=True)
    assert said == answers


@pytest.mark.parametrize("method", list(TrainingMethod))
def test_the_server_takes_what_comes_out(
    train: Train, source: BaseSource, method: TrainingMethod, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train("a", steps=2, method=method)
    code = main(["adapters", "check", str(trained.folder), "--base", str(source.folder), "--json"])
    assert code == 0, capsys.readouterr()
    text = (trained.folder / "adapter_config.json").read_text() + json.dumps(trained.record)
    assert str(source.folder) not in text


def test_the_record_says_what_it_was_made_from(train: Train) -> None:
    made = json.loads((train("a", steps=2, validation=0.2).folder / "training.json").read_text())
    assert made["recipe"]["rank"] == 4
    assert made["examples"]["examples"] == 5
    assert len(made["digests"]["base"]) == len(made["digests"]["data"]) == 64
    assert 0 < made["parameters"]["share"] < 1
    assert [one["validation_loss"] is None for one in made["curve"]] == [False, True] * 2 or any(
        one["validation_loss"] for one in made["curve"]
    )


def test_patience_ends_a_run_that_learns_nothing_more(train: Train) -> None:
    trained = train(
        "a", steps=200, rank=16, learning_rate=3e-2, validation=0.4, batch=2, patience=2
    )
    assert trained.record["steps"] < 200


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(
    train: Train, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"no number at step \d+; lower --learning-rate"):
        train("a", steps=10, learning_rate=1e30)
    for checkpoint in (tmp_path / "a" / job.CHECKPOINTS).glob("checkpoint-*"):
        tensors = load_file(checkpoint / "adapter_model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_examples_that_are_all_too_long_are_refused_with_the_shortest_length(train: Train) -> None:
    with pytest.raises(TrainingError, match=r"longer than --max-length 4 \(the shortest has \d+"):
        train("a", max_length=4)


def test_targets_that_the_base_lacks_are_refused(train: Train) -> None:
    with pytest.raises(TrainingError, match="--targets no_such"):
        train("a", targets=("no_such",))


def test_a_share_that_leaves_nothing_is_refused(train: Train) -> None:
    with pytest.raises(TrainingError, match="leaves none"):
        train("a", rows=PAIRS[:1], validation=0.5)
