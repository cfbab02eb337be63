"""A training run: a base, examples and a recipe become an adapter in a folder.

The run is transformers' Trainer over PEFT. What is here is the way in (token ids with the answers
marked), the way out (an adapter that the server takes, and its record), and what can go wrong.
Checkpoints lie in `checkpoints/` of the folder until the adapter is written.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EarlyStoppingCallback,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from lorry.errors import TrainingError
from lorry.model.progress import Say
from lorry.model.quiet import quiet
from lorry.training import step_memory, training_record
from lorry.training.adapter_model import loaded, save_adapter, with_adapter
from lorry.training.data_survey import Survey, survey
from lorry.training.evaluation import evaluate
from lorry.training.examples import Example, read_examples
from lorry.training.monitor import Monitor, Tell
from lorry.training.rendering import LearnedTokens, PairForm, Renderer
from lorry.training.training_recipe import Preset, TrainingRecipe

if TYPE_CHECKING:
    from lorry.model.base_source import BaseSource

CHECKPOINTS = "checkpoints"
_RECIPE = "recipe.json"

_LOGS = 50
"""Reports of a run, about."""

_VALIDATIONS = 10
"""Validations of a run, about; as many checkpoints are written."""

_UNLEARNED = -100
"""The label that transformers' loss leaves out."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """What a run will see."""

    source: BaseSource
    tokenizer: Any
    recipe: TrainingRecipe
    training: list[LearnedTokens]
    validation: list[LearnedTokens]
    survey: Survey
    digests: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run."""

    folder: Path
    record: dict[str, Any]


def prepare(
    source: BaseSource,
    data: Path,
    given: dict[str, Any],
    *,
    preset: Preset = Preset.GENERAL,
    validation: Path | float | None = None,
) -> PreparedRun:
    """Read and render everything. `given` are settings of the recipe; `validation` is a file, or
    the share of the examples that is held back.

    Raises TrainingError, SettingsError.
    """
    examples = read_examples(data)
    config = AutoConfig.from_pretrained(source.folder)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    text = config.get_text_config()
    held: list[Example] = []
    if isinstance(validation, Path):
        held = read_examples(validation)
    elif validation:
        examples, held = _split(examples, validation, given.get("seed", 0))
    longest = min(given.pop("max_length", 2048), getattr(text, "max_position_embeddings", 2048))
    recipe = TrainingRecipe.chosen(
        len(examples), text.hidden_size, preset, **given, max_length=longest
    )
    form = None if recipe.form == "auto" else PairForm(recipe.form)
    renderer = Renderer(tokenizer, _stop_ids(source.folder, tokenizer), form)
    sequences = renderer.sequences(examples)
    found = survey(examples, sequences, recipe.max_length, held)
    training = [one for one in sequences if len(one.ids) <= recipe.max_length]
    if not training:
        raise TrainingError(
            f"all {len(sequences)} sequences are longer than --max-length {recipe.max_length} "
            f"(the shortest has {found.shortest} tokens)"
        )
    validated = [one for one in renderer.sequences(held) if len(one.ids) <= recipe.max_length]
    if held and not validated:
        raise TrainingError(f"all validation sequences are longer than {recipe.max_length} tokens")
    return PreparedRun(
        source,
        tokenizer,
        recipe,
        training,
        validated,
        found,
        {
            "data": training_record.digest_of(data),
            "validation": training_record.digest_of(validation)
            if isinstance(validation, Path)
            else None,
            "tokenizer": training_record.digest_of(source.folder / "tokenizer.json"),
            "chat_template": training_record.digest_of_text(tokenizer.chat_template),
        },
    )


def run(
    prepared: PreparedRun,
    folder: Path,
    tell: Tell,
    *,
    say: Say = lambda _: None,
    resume: bool = False,
) -> Trained:
    """Train, and write the adapter and its record into `folder`. `say` gets the memory it takes.

    With `resume` a run that was interrupted goes on from its last checkpoint, if there is one.
    Raises TrainingError.
    """
    recipe = prepared.recipe
    checkpoints = folder / CHECKPOINTS
    last = _last_checkpoint(checkpoints, recipe, resume=resume)
    training_record.write_json(checkpoints / _RECIPE, recipe.as_json())
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    set_seed(recipe.seed)
    started = time.monotonic()
    with quiet():
        model = with_adapter(loaded(prepared.source.folder, recipe), recipe)
    needed = step_memory.need(model, recipe, max(len(one.ids) for one in prepared.training))
    say(f"training takes {needed.line}")
    step_memory.check(needed, recipe)
    trainable, every = model.get_nb_trainable_parameters()
    monitor = Monitor(tell)
    steps = _steps(recipe, len(prepared.training))
    patient = recipe.patience is not None and bool(prepared.validation)
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, steps, checkpoints, validated=bool(prepared.validation)),
        data_collator=_Collator(prepared.tokenizer, monitor),
        train_dataset=prepared.training,
        eval_dataset=prepared.validation or None,
        callbacks=[
            monitor,
            *([EarlyStoppingCallback(recipe.patience)] if patient else []),
        ],
    )
    # Its own printing; the monitor tells.
    for callback in ("PrinterCallback", "ProgressCallback"):
        for one in list(trainer.callback_handler.callbacks):
            if type(one).__name__ == callback:
                trainer.remove_callback(one)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if monitor.failed_at is not None:
        kept = get_last_checkpoint(str(checkpoints))
        raise TrainingError(
            f"the loss became no number at step {monitor.failed_at}; lower --learning-rate "
            f"({recipe.learning_rate:g}). "
            + (f"The last good checkpoint is {kept}" if kept else "No checkpoint came before it")
        )
    evaluation = None
    if prepared.validation:
        with quiet():
            evaluation = evaluate(model, prepared.tokenizer, prepared.validation).as_json()
    made = {
        "recipe": recipe.as_json(),
        "base": prepared.source.given,
        "digests": {
            **prepared.digests,
            "base": training_record.digest_of_base(prepared.source.folder),
        },
        "examples": prepared.survey.as_json(),
        "parameters": {"trained": trainable, "all": every, "share": trainable / every},
        "memory": needed.bytes,
        "steps": trainer.state.global_step,
        "evaluation": evaluation,
        "curve": [one.as_json() for one in monitor.curve],
        "seconds": time.monotonic() - started,
        "threads": torch.get_num_threads(),
        "versions": training_record.versions(),
    }
    save_adapter(model, prepared.source.given, folder)
    training_record.write_json(folder / training_record.RECORD, made)
    shutil.rmtree(checkpoints)
    return Trained(folder, made)


def _split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    if not 0 < share < 1:
        raise TrainingError("--validation is a file, or a share between 0 and 1")
    count = max(1, round(share * len(examples)))
    if count >= len(examples):
        raise TrainingError(f"--validation {share:g} of {len(examples)} examples leaves none")
    held = set(random.Random(seed).sample(range(len(examples)), count))
    return (
        [one for at, one in enumerate(examples) if at not in held],
        [one for at, one in enumerate(examples) if at in held],
    )


def _stop_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    values: list[Any] = [tokenizer.eos_token_id]
    if (folder / "generation_config.json").is_file():
        values.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    for value in values:
        found |= set(value) if isinstance(value, list) else {value} - {None}
    return frozenset(found)


def _last_checkpoint(checkpoints: Path, recipe: TrainingRecipe, *, resume: bool) -> Path | None:
    """Where to go on; the folder is emptied for a new run."""
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        return None
    checkpoints.mkdir(parents=True, exist_ok=True)
    last = get_last_checkpoint(str(checkpoints))
    if last is None:
        return None
    before = json.loads((checkpoints / _RECIPE).read_text(encoding="utf-8"))
    if changed := recipe.differences(before):
        raise TrainingError(
            "--resume needs the settings that the run was started with; there is "
            + "; ".join(changed)
        )
    return Path(last)


def _steps(recipe: TrainingRecipe, sequences: int) -> int:
    if recipe.steps is not None:
        return recipe.steps
    return max(1, math.ceil(recipe.epochs * math.ceil(sequences / recipe.batch)))


def _arguments(
    recipe: TrainingRecipe, steps: int, checkpoints: Path, *, validated: bool
) -> TrainingArguments:
    every = max(1, steps // _VALIDATIONS)
    patient = recipe.patience is not None and validated
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=recipe.batch // recipe.accumulation,
        per_device_eval_batch_size=recipe.batch // recipe.accumulation,
        gradient_accumulation_steps=recipe.accumulation,
        max_steps=steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule.value,
        warmup_steps=math.ceil(recipe.warm_up * steps),
        weight_decay=recipe.weight_decay,
        optim="adamw_torch",
        activation_checkpointing=recipe.checkpointing,
        use_cache=False,
        logging_steps=max(1, steps // _LOGS),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validated else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=patient,
        metric_for_best_model="eval_loss" if validated else None,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class _Collator:
    """Pads sequences at the right into tensors [B, T]; causal attention never looks there."""

    def __init__(self, tokenizer: Any, monitor: Monitor) -> None:
        pad = tokenizer.pad_token_id
        self._pad = tokenizer.eos_token_id if pad is None else pad
        self._monitor = monitor

    def __call__(self, sequences: Sequence[LearnedTokens]) -> dict[str, torch.Tensor]:
        width = max(len(one.ids) for one in sequences)
        ids_BT = torch.full((len(sequences), width), self._pad or 0)
        labels_BT = torch.full((len(sequences), width), _UNLEARNED)
        mask_BT = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, one in enumerate(sequences):
            ids = torch.tensor(one.ids)
            ids_BT[row, : len(ids)] = ids
            mask_BT[row, : len(ids)] = 1
            learned = torch.tensor(one.learned)
            labels_BT[row, : len(ids)] = torch.where(learned, ids, _UNLEARNED)
            self._monitor.tokens += len(one.ids)
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
