"""Train the sample adapters: `python train.py [NAME ...] [--kind KIND] [--base FOLDER_OR_ALIAS]`.

Seeded and single-process, so that the same machine with the same packages writes the same bytes.
The base is held in bfloat16 (two to three times faster than float32 on a CPU that has the
instructions), the adapter's own weights in float32; they are rounded once, when saved.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from base import ALIAS, base_folder
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    get_peft_model,
)
from plans import KINDS, PLANS, Plan, of_kind
from prompts import FORMS, Encoded, Example, encode, read_examples
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorry.training.adapter_model import save_adapter

SAMPLES = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"


def batches(
    tokenizer: Any, examples: list[Example], plan: Plan, rng: random.Random
) -> Iterator[list[Encoded]]:
    """Every epoch's batches, of neighbours in length so that little is padding."""
    for epoch in range(plan.epochs):
        rows = [
            encode(tokenizer, example, FORMS[(epoch + index) % len(FORMS)])
            for index, example in enumerate(examples)
        ]
        rng.shuffle(rows)
        rows.sort(key=lambda row: len(row.ids) // 16)
        groups = [rows[start : start + plan.batch] for start in range(0, len(rows), plan.batch)]
        rng.shuffle(groups)
        yield from groups


def loss_of(model: Any, group: list[Encoded], pad: int) -> torch.Tensor:
    """Mean cross entropy over the answers' tokens (scalar, float32)."""
    width = max(len(row.ids) for row in group)
    ids_BT = torch.full((len(group), width), pad)
    answer_BT = torch.zeros((len(group), width), dtype=torch.bool)
    for index, row in enumerate(group):
        ids_BT[index, : len(row.ids)] = torch.tensor(row.ids)
        answer_BT[index, row.answer_from : len(row.ids)] = True
    # Rows are padded on the right, which causal attention never looks at: no mask is needed.
    causal_lm = model.get_base_model()
    hidden_BTH = hidden_of(model, ids_BT)
    # The head is a fifth of this model: only the positions that are scored go through it.
    logits_AV = causal_lm.lm_head(hidden_BTH[:, :-1][answer_BT[:, 1:]])
    return torch.nn.functional.cross_entropy(logits_AV.float(), ids_BT[:, 1:][answer_BT[:, 1:]])


def hidden_of(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """The last hidden state of every real token, [B, T, H]; virtual ones stand before them."""
    inner = model.get_base_model().model
    if not model.active_peft_config.is_prompt_learning:
        return inner(input_ids=ids_BT, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
    words_BTH = inner.embed_tokens(ids_BT)
    virtual_BPH = model.get_prompt(len(ids_BT)).to(words_BTH.dtype)
    both_BSH = torch.cat([virtual_BPH, words_BTH], dim=1)
    hidden_BSH = inner(inputs_embeds=both_BSH, use_cache=False).last_hidden_state
    return hidden_BSH[:, virtual_BPH.shape[1] :]  # type: ignore[no-any-return]


def config_of(plan: Plan, tokenizer: Any) -> PeftConfig:
    targets = plan.targets if isinstance(plan.targets, str) else list(plan.targets)
    match plan.kind:
        case "ia3":
            return IA3Config(
                task_type="CAUSAL_LM",
                target_modules=targets,
                feedforward_modules=[name for name in plan.targets if name == "down_proj"],
            )
        case "prompt":
            return PromptTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=len(tokenizer(plan.start).input_ids)
            )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=plan.rank,
        lora_alpha=plan.alpha,
        target_modules=targets,
        layers_to_transform=None if plan.layers is None else list(plan.layers),
        use_rslora=plan.rslora,
        use_dora=plan.kind == "dora",
        rank_pattern=dict(plan.rank_pattern),
        alpha_pattern=dict(plan.alpha_pattern),
    )


@torch.no_grad()
def start_from_text(model: Any, ids: list[int]) -> None:
    """Virtual tokens start as the embeddings of a text, rather than anywhere."""
    (encoder,) = model.prompt_encoder.values()
    encoder.embedding.weight.copy_(model.get_input_embeddings().weight[ids])


def train(plan: Plan, base: Path) -> Any:
    """A PEFT model with `plan`'s adapter trained."""
    torch.manual_seed(plan.seed)
    rng = random.Random(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = get_peft_model(model, config_of(plan, tokenizer))
    if plan.kind == "prompt":
        start_from_text(model, tokenizer(plan.start).input_ids)
    examples = read_examples(DATA / f"{plan.examples}.jsonl")
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=0.01)
    steps = plan.epochs * math.ceil(len(examples) / plan.batch)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    started = time.monotonic()
    model.train()
    for step, group in enumerate(batches(tokenizer, examples, plan, rng), start=1):
        loss = loss_of(model, group, tokenizer.eos_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 10 == 0 or step == steps:
            spent = time.monotonic() - started
            print(f"{plan.name} {step}/{steps} loss {loss.item():.3f} {spent:.0f}s", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(PLANS)}; none means all")
    parser.add_argument("--kind", choices=KINDS, default="lora", help="what to make of the data")
    parser.add_argument("--base", default=ALIAS, help="a model folder, or an alias of lorry's")
    parser.add_argument("--into", type=Path, help="where the folders go")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(PLANS))
    if unknown:
        parser.error(f"no sample is called {', '.join(unknown)}; there are {', '.join(PLANS)}")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    base = base_folder(options.base)
    into = options.into or (SAMPLES if options.kind == "lora" else SAMPLES / "kinds")
    for name in options.names or PLANS:
        plan = of_kind(PLANS[name], options.kind)
        dtype = getattr(torch, plan.dtype)
        save_adapter(train(plan, base), ALIAS, into / plan.name, dtype)


if __name__ == "__main__":
    main()
