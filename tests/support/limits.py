"""The tables of docs/limits.md: every number is the constant that the code compares with."""

from __future__ import annotations

from lorry.api import (
    adapter_schema,
    arrival,
    bodies,
    bounds,
    completions,
    grammars,
    heads,
    mistakes,
    restrictions,
    sampling,
    template_process,
    token_report,
    tools,
    vectors,
)
from lorry.engine import grammar, grammar_process
from lorry_adapters.lora import config_fields, patterns, problems, tensor_file
from lorry_adapters.registry import archive, merges, names, record, version_rules


def requests() -> str:
    return _table(
        {
            "the request line and all headers": _size(heads.MAX_HEAD),
            "the time for them": f"{heads.HEAD_PATIENCE:.0f} s",
            "a JSON body": _size(bodies.MAX_JSON),
            "texts in it; and its lists, objects and keys together": _count(mistakes.MAX_PARTS),
            "items of its lists": _count(mistakes.MAX_NUMBERS),
            "a pause in a body": f"{arrival.PATIENCE:.0f} s",
            "the pace of a body": f"at least {_size(arrival.PACE)} a second",
            "adapters in a request": _count(record.MAX_SELECTION),
            "magnitude of a scale": f"{record.MAX_SCALE:g}",
            "prompts of a completion": _count(completions.MAX_PROMPTS),
            "texts to embed, classify, score or rerank": _count(vectors.MAX_INPUTS),
            "answers (`n`, `best_of`)": _count(bounds.MAX_ANSWERS),
            "likeliest tokens told at a place (`top_logprobs`)": _count(bounds.MAX_TOP),
            "tokens told by `prompt_logprobs: -1`": _count(token_report.MAX_TOLD),
            "stop strings": _count(bounds.MAX_STOPS),
            "a stop string, a bad word": f"{_count(bounds.MAX_STOP_LENGTH)} characters",
            "`bad_words`": _count(restrictions.MAX_BAD_WORDS),
            "magnitude of a `logit_bias`": f"{sampling.MAX_BIAS:g}",
            "calls of a forced `tool_choice`": _count(tools.MAX_CALLS),
            "a schema, a regular expression, a grammar": _characters(grammar.MAX_GRAMMAR),
            "texts of a `choice`": _count(grammars.MAX_CHOICES),
            "to compile a grammar": (
                f"{grammar_process.COMPILE_SECONDS:g} s of processor time, "
                f"{_size(grammar_process.MEMORY)}"
            ),
            "to follow a grammar": (
                f"{grammar_process.ANSWER_SECONDS:g} s of processor time an answer and "
                f"{grammar_process.TOKEN_SECONDS * 1000:g} ms a token"
            ),
            "different grammars in use": _count(grammar.MAX_LIVE),
            "to render a chat template of an adapter's or a request's own": (
                f"{template_process.SECONDS:g} s of processor time, "
                f"{_size(template_process.MEMORY)}"
            ),
        }
    )


def adapters() -> str:
    return _table(
        {
            "a name or an alias": f"{_count(names.MAX_NAME)} characters",
            "aliases of an adapter": _count(version_rules.MAX_ALIASES),
            "versions in a split, and a weight": f"{_count(version_rules.MAX_SHARES)}, and "
            f"{_count(version_rules.MAX_WEIGHT)}",
            "members of an archive": _count(archive.MAX_MEMBERS),
            "a path in an archive": f"{_count(archive.MAX_PATH)} characters",
            "`adapter_config.json`": _size(config_fields.MAX_CONFIG),
            "magnitude of `lora_alpha`": _count(int(config_fields.MAX_ALPHA)),
            "a regular expression in a config": f"{_count(patterns.MAX_PATTERN)} characters",
            "tensors in a file": _count(tensor_file.MAX_TENSORS),
            "the header of a safetensors file": _size(tensor_file.MAX_HEADER),
            "a tensor's name": f"{_count(tensor_file.MAX_NAME)} characters",
            "a description": f"{_count(adapter_schema.MAX_DESCRIPTION)} characters",
            "problems listed by a refusal": _count(problems.MAX_PROBLEMS),
            "merged adapters kept (`merged_adapters`)": _count(merges.LIMIT),
        }
    )


def _table(rows: dict[str, str]) -> str:
    lines = ["| | limit |", "|---|---|", *(f"| {what} | {most} |" for what, most in rows.items())]
    return "\n".join(lines) + "\n"


def _count(number: int) -> str:
    return f"{number:,}"


def _characters(number: int) -> str:
    return f"{number // 1024:,} Ki characters"


def _size(number: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= unit:
            return f"{number // unit} {name}"
    return f"{number} bytes"
