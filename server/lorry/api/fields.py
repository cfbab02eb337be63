"""Fields of requests that no route serves, in one table: which are accepted and which refused.

A field that a route serves is in its schema, which takes precedence over this table. Of the others,
a field is accepted if its value changes nothing that a client could miss; the answer names it in
`X-Lorry-Ignored`. A field is refused by name if ignoring it would give another answer than the
client asked for. A name that is not in the table is judged by the words in it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto

_EMPTY: tuple[object, ...] = (None, "", [], {})
"""Values that request nothing, in any field."""


class Strays(Enum):
    """How an object of a body treats fields that its schema does not have."""

    REFUSED = auto()
    """It refuses all of them."""
    LISTED = auto()
    """It accepts those that the table accepts. All others would concern the answer."""
    HARMLESS = auto()
    """It also accepts names whose words do not concern the answer."""


@dataclass(frozen=True, slots=True)
class FieldRow:
    """Fields that are treated alike."""

    names: tuple[str, ...]
    what: str
    neutral: tuple[object, ...] | None = ()
    """Values that change nothing, beside null and empty ones; None: any value."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANY = None

_LIMIT = "Use `max_tokens`, or `max_new_tokens` in `/generate`"

TABLE: tuple[FieldRow, ...] = (
    FieldRow(
        _names(
            "max_retries num_retries timeout request_timeout api_base base_url api_key api_type "
            "api_version organization custom_llm_provider drop_params extra_headers headers "
            "extra_query fallbacks caching cache ttl no-log tags model_info proxy_server_request "
            "litellm_params provider route"
        ),
        "Meant for a client or a proxy",
        ANY,
    ),
    FieldRow(
        _names(
            "request_id rid chat_id session_id conversation_id message_id parent_message_id "
            "thread_id run_id trace_id tool_ids filter_ids features "
            "background_tasks model_item generation_name end_user_id user_id"
        ),
        "Identifiers of other systems",
        ANY,
    ),
    FieldRow(
        _names(
            "keep_alive num_ctx num_gpu num_thread num_batch main_gpu low_vram use_mmap use_mlock "
            "numa f16_kv id_slot slot_id n_keep n_threads timings_per_token "
            "return_progress priority guided_decoding_backend"
        ),
        "Options of other servers",
        ANY,
    ),
    FieldRow(
        _names("cache_prompt cache_salt speculative"), "In `/generate` they are in `parameters`"
    ),
    FieldRow(
        _names("speculative.n_max speculative.n_min speculative.p_min"),
        "How much llama.cpp's server drafts, which changes no answer; see `speculative`",
        ANY,
    ),
    FieldRow(
        _names(
            "reasoning_effort reasoning include_reasoning separate_reasoning verbosity thinking "
            "thinking_budget enable_thinking"
        ),
        "How much to reason and to write, for models that have a switch for it",
        ANY,
    ),
    FieldRow(
        _names(
            "mirostat_tau mirostat_eta xtc_threshold dry_base dry_allowed_length "
            "dry_penalty_last_n dry_range dry_sequence_breakers dynatemp_exponent smoothing_curve"
        ),
        "Parameters of samplers that are not served; alone they have no effect",
        ANY,
    ),
    FieldRow(_names("use_beam_search early_stopping"), "Beam search", (False,)),
    FieldRow(_names("num_beams num_beam_groups length_penalty"), "Beam search", (1,)),
    FieldRow(_names("diversity_penalty"), "Beam search", (0,)),
    FieldRow(
        _names(
            "mirostat mirostat_mode xtc_probability dry_multiplier dynatemp_range "
            "smoothing_factor top_a epsilon_cutoff eta_cutoff no_repeat_ngram_size penalty_alpha"
        ),
        "Samplers of other servers",
        (0,),
    ),
    FieldRow(_names("top_n_sigma nsigma"), "Samplers of other servers", (-1, 0)),
    FieldRow(
        _names("tfs tfs_z encoder_repetition_penalty guidance_scale cfg_scale"),
        "Samplers of other servers",
        (1,),
    ),
    FieldRow(
        _names("penalize_nl dynamic_temperature temperature_last watermark"),
        "Samplers of other servers",
        (False,),
    ),
    FieldRow(
        _names("samplers sampler_order sampler_seed logits_processors negative_prompt"),
        "Samplers of other servers",
    ),
    FieldRow(_names("do_sample"), "Use `temperature: 0` for a greedy answer", (True,)),
    FieldRow(_names("typical"), "Use `typical_p`", (1,)),
    FieldRow(_names("repeat_penalty"), "Use `repetition_penalty`", (1,)),
    FieldRow(
        _names("repeat_last_n penalty_last_n"),
        "`repetition_penalty` covers the whole context",
        (-1,),
    ),
    FieldRow(_names("n_predict num_predict"), _LIMIT, (-1, -2)),
    FieldRow(_names("max_length max_new_tokens max_output_tokens"), _LIMIT),
    FieldRow(_names("num_return_sequences"), "Use `n`", (1,)),
    FieldRow(
        _names("lora lora_id lora_name lora_path adapter_id adapters"),
        "Use `adapter`",
    ),
    FieldRow(
        _names(
            "format grammar regex ebnf json_schema guided_json guided_regex guided_choice "
            "guided_grammar guided_whitespace_pattern structured_outputs"
        ),
        "Use `response_format`",
    ),
    FieldRow(_names("min_tokens min_new_tokens min_length"), "Minimum length of the answer", (0,)),
    FieldRow(
        _names("stop_token_ids bad_words bad_words_ids allowed_token_ids"),
        "Tokens that end the answer or must not be in it",
    ),
    FieldRow(_names("best_of"), "Several answers, of which the best is returned", (1,)),
    FieldRow(
        _names(
            "echo continue_final_message include_stop_str_in_output return_token_ids "
            "return_tokens_as_token_ids apply_chat_template raw"
        ),
        "Changes the form of the prompt or of the answer",
        (False,),
    ),
    FieldRow(
        _names("skip_special_tokens spaces_between_special_tokens add_generation_prompt"),
        "Changes the form of the prompt or of the answer",
        (True,),
    ),
    FieldRow(
        _names("prompt_logprobs truncate_prompt_tokens chat_template tool_prompt suffix options"),
        "Changes the form of the prompt or of the answer",
    ),
    FieldRow(
        _names("audio images web_search_options plugins mm_processor_kwargs kv_transfer_params"),
        "Features that this server does not have",
    ),
)  # fmt: skip

MESSAGES: tuple[FieldRow, ...] = (
    FieldRow(
        _names(
            "id annotations cache_control created_at timestamp status type model usage metadata "
            "example weight additional_kwargs response_metadata usage_metadata "
            "provider_specific_fields reasoning_details thinking_blocks invalid_tool_calls "
            "tool_call_chunks citations"
        ),
        "Parts of an earlier answer that is sent back",
        ANY,
    ),
    FieldRow(
        _names("prefix partial"), "Asks for an answer that begins with this message", (False,)
    ),
    FieldRow(_names("audio images image_url files"), "Only text is read"),
)
"""For the messages of a chat."""

_BY_NAME = {name: row for row in TABLE for name in row.names}
_OF_MESSAGES = {name: row for row in MESSAGES for name in row.names}

_TELLING = re.compile(
    r"(?:^|[^a-z])(?:adapt|lora|peft|model|base|temperature|top(?![a-z])|sampl|penal|beam|bias|"
    r"logit|logprob|prob|seed|random|stop|eos|bos|end(?![a-z])|token|length|max(?![a-z])|"
    r"min(?![a-z])|grammar|guided|regex|pattern|schema|format|choice|json|struct|template|prompt|"
    r"message|role|content|text|input|instruct|system|context|image|audio|video|file|document|"
    r"tool|function|scale|weight|strength|decod|truncat|suffix|prefix|echo|dimension|pool|normal|"
    r"ignore|skip|repe|greedy|search|ban|bad|allow|forbid|speculat|cutoff|ngram|watermark|best|"
    r"num(?![a-z])|n$)"
)
"""Words about the answer, recognized at the start of a part of a name."""

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

_CLOSE = 0.8
"""Names at least this similar are misspellings (`difflib`'s ratio)."""


def refusal(
    name: str, value: object, where: str, served: Collection[str], how: Strays
) -> str | None:
    """Return why the field `name`, which is not in `served`, is refused, or None if it is accepted.

    `where` is its path in the body, with its name; `how` is not REFUSED."""
    return _judge(_BY_NAME, name, value, where, served, how)


def refusal_in_message(name: str, value: object, where: str, served: Collection[str]) -> str | None:
    """Like `refusal`, for a field of a chat's message."""
    return _judge(_OF_MESSAGES, name, value, where, served, Strays.HARMLESS)


def _judge(
    table: Mapping[str, FieldRow],
    name: str,
    value: object,
    where: str,
    served: Collection[str],
    how: Strays,
) -> str | None:
    if value in _EMPTY:
        return None
    row = table.get(name)
    if row is not None:
        if row.neutral is None or value in row.neutral:
            return None
        takes = " or ".join(json.dumps(one) for one in row.neutral)
        told = f"only {takes} is accepted" if takes else "leave it out"
        return f"{where} is not served; {told} ({row.what})"
    close = difflib.get_close_matches(name[:100], served, n=1, cutoff=_CLOSE)
    if close:
        return f"unknown field {where}; did you mean {close[0]}?"
    if how is Strays.LISTED or _TELLING.search(_CAMEL.sub("_", name[:100]).lower()):
        return f"unknown field {where}: it may be about the answer; leave it out"
    return None


def markdown_table(served: Collection[str] = ()) -> str:
    """Return the table for the documentation, without the fields that every route serves."""
    lines = ["| Fields | Accepted | |", "|---|---|---|"]
    in_messages = [(row, "messages[].") for row in MESSAGES]
    for row, prefix in [*((row, "") for row in TABLE), *in_messages]:
        names = [f"`{prefix}{name}`" for name in row.names if prefix or name not in served]
        if names:
            values = (None,) if row.neutral is not None else ()
            shown = ", ".join(f"`{json.dumps(one)}`" for one in (*(row.neutral or ()), *values))
            lines.append(f"| {', '.join(names)} | {shown or 'any value'} | {row.what} |")
    return "\n".join(lines) + "\n"
