"""Write the cards: `python card.py --outcomes FILE`, with what `check.py --json FILE` saw.

A card is README.md in a sample's folder. Everything in it is taken from the files next to it
(plan, data, config, weights) and from outputs that were really seen, so that it cannot drift.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plans import KINDS, PLANS, Plan, of_kind
from prompts import read_examples

SAMPLES = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"

_MADE_WITH = ("peft", "transformers", "torch")
_BASES = {"none": "float32", "int8": "int8", "nf4": "nf4"}


def _targets(plan: Plan) -> str:
    names = (
        f"the regex `{plan.targets}`"
        if isinstance(plan.targets, str)
        else ", ".join(f"`{name}`" for name in plan.targets)
    )
    return (
        names if plan.layers is None else f"{names} of layers {plan.layers[0]} to {plan.layers[-1]}"
    )


def _scaling(plan: Plan) -> str:
    rule = "alpha / sqrt(rank), rsLoRA" if plan.rslora else "alpha / rank"
    return f"alpha {plan.alpha}, scaled by {rule}"


def _rank(plan: Plan) -> str:
    others = ", ".join(
        f"{rank} on `{name}` (alpha {plan.alpha_pattern[name]})"
        for name, rank in plan.rank_pattern.items()
    )
    return f"{plan.rank}; by rank_pattern {others}" if others else f"{plan.rank}"


def plan_of(name: str) -> Plan:
    """`pirate`, or `pirate-ia3`."""
    data, _, kind = name.rpartition("-")
    return of_kind(PLANS[data], kind) if kind in KINDS else PLANS[name]


def _shape(plan: Plan) -> str:
    """The rows of the recipe that differ from kind to kind."""
    match plan.kind:
        case "ia3":
            rows = {
                "kind": "(IA)3: a vector of factors a module",
                "targets": _targets(plan),
            }
        case "prompt":
            rows = {"kind": f"prompt tuning; the virtual tokens start as `{plan.start}`"}
        case _:
            names = {"dora": "DoRA", "rslora": "rsLoRA"}
            rows = {"kind": names[plan.kind]} if plan.kind in names else {}
            rows |= {"targets": _targets(plan), "rank": _rank(plan), "strength": _scaling(plan)}
    return "\n".join(f"| {name} | {text} |" for name, text in rows.items())


def _command(plan: Plan) -> str:
    kind = "" if plan.kind == "lora" else f" --kind {plan.kind}"
    return f"python adapters/samples/recipe/train.py {plan.examples}{kind}"


def _training(plan: Plan) -> str:
    optimizer = f"AdamW at {plan.learning_rate:g} with a cosine"
    return f"{plan.epochs} epochs, batches of {plan.batch}, {optimizer}, seed {plan.seed}"


def _seen(text: str, most: int = 1000) -> str:
    """One table cell: as it came, on one line, or a word for nothing at all."""
    shown = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    shown = shown if len(shown) <= most else shown[:most].rstrip() + "…"
    return f"`{shown}`" if shown else "(ends at once)"


def card(
    sample: dict[str, Any], table: dict[str, Any], outcomes: list[dict[str, Any]], folder: Path
) -> str:
    """The whole text of one card; `folder` is where all the samples of its table lie."""
    name = sample["name"]
    plan = plan_of(name)
    examples = read_examples(DATA / f"{plan.examples}.jsonl")
    weights = (folder / name / "adapter_model.safetensors").read_bytes()
    up = "../" * (1 + len(folder.relative_to(SAMPLES).parts))
    demo = json.dumps(
        {
            "inputs": sample["demos"][0],
            "adapter": name,
            "parameters": {"max_new_tokens": sample["max_new_tokens"]},
        }
    )
    rows = "\n".join(
        f"| {_BASES[o['quantize']]}, {o['form']} | {_seen(o['prompt'])} | {_seen(o['base'], 120)} "
        f"| {_seen(o['adapter'])} |"
        for o in outcomes
        if o["name"] == name
    )
    source = f"recipe/data/{plan.examples}.jsonl"
    data = f"[`{source}`]({up}{source})"
    made_with = ", ".join(f"{package} {version(package)}" for package in _MADE_WITH)
    first = examples[len(examples) // 3]
    return f"""---
base_model: {table["base"]}
base_gguf_sha256: {table["base_gguf_sha256"]}
library_name: peft
license: apache-2.0
tags: [{plan.kind}, lorry-sample]
---

# {name}

{sample["description"]}. An adapter of Lorry's samples for `{table["base"]}`
(SmolLM2-135M-Instruct): small, quick to train, and made so that its effect is seen at once. What
a model of 135 million weights says is often wrong; the adapter changes how it answers, not what
it knows.

```
curl localhost:8000/generate -H 'content-type: application/json' \\
  -d '{demo}'
```

It works on raw text, with or without a newline at the end, and through the chat template.

## Recipe

| | |
|---|---|
| base | `{table["base"]}`, the GGUF with sha256 `{table["base_gguf_sha256"]}` |
| data | {data}: {len(examples)} pairs, written for this adapter |
{_shape(plan)}
| training | {_training(plan)} |
| made with | {made_with}, on a CPU |
| weights | {plan.dtype}, {len(weights):,} bytes, sha256 `{hashlib.sha256(weights).hexdigest()}` |

One pair of the data: {_seen(first.prompt)} and {_seen(first.answer)}

`{_command(plan)}` trains it again;
see [the recipe]({up}recipe/README.md).

## What it says

Greedy, at most {sample["max_new_tokens"]} new tokens, on prompts that are not in the data.
"raw" is the prompt as it stands, "chat" the same in the base's chat template. Line breaks are shown
as spaces, and long answers of the base are cut at "…".

| base weights, form | prompt | base alone | with {name} |
|---|---|---|---|
{rows}

## Licence

Apache-2.0: the adapter, its data and its recipe, as the base.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outcomes", type=Path, nargs="+", required=True)
    parser.add_argument("--table", type=Path, default=SAMPLES / "samples.json")
    options = parser.parse_args()
    table = json.loads(options.table.read_text(encoding="utf-8"))
    folder = options.table.resolve().parent
    outcomes: list[dict[str, Any]] = []
    for path in options.outcomes:
        outcomes += json.loads(path.read_text(encoding="utf-8"))
    for sample in table["samples"]:
        if any(outcome["name"] == sample["name"] for outcome in outcomes):
            text = card(sample, table, outcomes, folder)
            (folder / sample["name"] / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
