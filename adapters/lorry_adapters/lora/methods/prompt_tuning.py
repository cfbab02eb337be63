"""Prompt tuning and related methods: trained embeddings before the prompt.

    prompt_embeddings           [N, H]          PROMPT_TUNING, P_TUNING, CPT
    prefix_task_cols            [1, N, rank]    also in MULTITASK_PROMPT_TUNING
    prefix_task_rows            [1, rank, H]

P-tuning trains a small network and CPT a bounded change, but PEFT saves the resulting
embeddings. Multitask prompts are multiplied by the task's own part when they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lorry_adapters.errors import Problem, Remedy
from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.config_fields import Fields, Wrong
from lorry_adapters.lora.methods.method import Method, VirtualTokenKind
from lorry_adapters.lora.parts import FileContents, Parts, SpecBase
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.prompt import PromptEmbeddings, multitask
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile

PROMPT_KEY: Final = "prompt_embeddings"
_COLUMNS: Final = "prefix_task_cols"
_ROWS: Final = "prefix_task_rows"

MAX_COUNT: Final = 1 << 20

TRAINING: Final = frozenset(
    {
        "cpt_mask",
        "cpt_token_ids",
        "cpt_tokens_type_mask",
        "encoder_dropout",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_reparameterization_type",
        "init_weights",
        "num_frozen_tokens",
        "opt_loss_decay_factor",
        "opt_projection_epsilon",
        "opt_projection_format_epsilon",
        "opt_weighted_loss_type",
        "prefix_projection",
        "prompt_tuning_init",
        "prompt_tuning_init_state_dict_path",
        "prompt_tuning_init_task",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)
"""Fields about the initialisation and training of virtual tokens, for all methods with some."""

NOT_SERVED: Final = {
    "modules_to_save": "full weights beside the virtual tokens (modules_to_save)",
}


@dataclass(frozen=True, slots=True)
class PromptSpecBase(SpecBase):
    """The fields that all methods with virtual tokens share."""

    count: int
    token_dim: int | None
    num_layers: int | None
    num_attention_heads: int | None


def read_shared(
    fields: Fields, name: str
) -> tuple[str, str | None, str, int, int | None, int | None, int | None]:
    """Return the fields of `PromptSpecBase` in their order."""
    count = fields.take("num_virtual_tokens", _count, 0, required=True)
    if count == 0 and not fields.complains_of("num_virtual_tokens"):
        fields.problems.append("num_virtual_tokens is missing: give the number of virtual tokens")
    submodules = fields.raw("num_transformer_submodules")
    if submodules not in (None, 1):
        fields.problems.append(
            f"num_transformer_submodules is {shown(submodules)}: only decoder-only models are "
            "served, for which it is 1"
        )
    return (
        name,
        fields.base_model(),
        fields.task_type(),
        count,
        fields.take("token_dim", _count, None),
        fields.take("num_layers", _count, None),
        fields.take("num_attention_heads", _count, None),
    )


@dataclass(frozen=True, slots=True)
class PromptSpec(PromptSpecBase):
    """Created by `read_prompt` and `read_multitask` only."""

    rank: int | None = None
    """For multitask prompts: the rank of the task's own part."""

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        width = _width(layout, problems)
        wanted: dict[str, tuple[int, ...]] = {PROMPT_KEY: (self.count, width)}
        if self.rank is not None:
            wanted |= {_COLUMNS: (1, self.count, self.rank), _ROWS: (1, self.rank, width)}
        check_tensors(file, wanted, problems, sound=sound)
        if self.token_dim not in (None, width):
            problems.append(
                f"token_dim is {self.token_dim}; the embeddings of the base {layout.name} are "
                f"{width} wide"
            )

        def read() -> Parts:
            shared_NH = file.read(PROMPT_KEY)
            if self.rank is None:
                return Parts(prompt=PromptEmbeddings(shared_NH))
            return Parts(prompt=multitask(shared_NH, file.read(_COLUMNS)[0], file.read(_ROWS)[0]))

        return FileContents(modules=(), read=read, virtual_tokens=self.count)


def read_prompt(fields: Fields, name: str) -> PromptSpec:
    spec = PromptSpec(*read_shared(fields, name))
    fields.refuse_the_rest(TRAINING, NOT_SERVED)
    return spec


def read_multitask(fields: Fields, name: str) -> PromptSpec:
    shared = read_shared(fields, name)
    rank = fields.take("num_ranks", check.rank, 1)
    tasks = fields.take("num_tasks", _count, 1)
    if tasks > 1:
        fields.problems.append(
            Problem(
                f"the prompts of {tasks} tasks in one adapter are not served, since a request "
                "names an adapter and no task: make one adapter for each task",
                Remedy.KEEP_TASK,
            )
        )
    fields.refuse_the_rest(TRAINING, NOT_SERVED)
    return PromptSpec(*shared, rank)


def check_tensors(
    file: TensorFile,
    wanted: Mapping[str, tuple[int, ...]],
    problems: list[str],
    *,
    sound: bool,
) -> None:
    """Check that the file contains exactly `wanted`. Shapes are checked only if the config is
    `sound`."""
    for key, shape in wanted.items():
        entry = file.entries.get(key)
        if entry is None:
            problems.append(f"the file has no {key}, the virtual tokens")
            continue
        if entry.dtype not in DTYPES:
            problems.append(
                f"{shown(key)} is {entry.dtype}; adapters are served in {', '.join(DTYPES)}"
            )
        if sound and entry.shape != shape:
            problems.append(f"{shown(key)} is {list(entry.shape)}; this needs {list(shape)}")
    for key in file.entries:
        if key not in wanted:
            problems.append(f"{shown(key)}: unexpected key; expected {', '.join(wanted)}")


def _width(layout: BaseLayout, problems: list[str]) -> int:
    if layout.input_embedding is None:
        problems.append(f"the base {layout.name} has no embeddings to put virtual tokens beside")
        return 0
    return layout.modules[layout.input_embedding].out_features


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise Wrong(f"must be a whole number from 1 to {MAX_COUNT}")
    return value


MULTITASK: Final = Method(
    "MULTITASK_PROMPT_TUNING",
    "multitask prompt tuning",
    read_multitask,
    virtual_tokens=VirtualTokenKind.EMBEDDINGS,
    scalable=False,
)
METHODS: Final = (
    *(
        Method(name, title, read_prompt, virtual_tokens=VirtualTokenKind.EMBEDDINGS, scalable=False)
        for name, title in (
            ("PROMPT_TUNING", "prompt tuning"),
            ("P_TUNING", "p-tuning"),
            ("CPT", "CPT"),
        )
    ),
    MULTITASK,
)
