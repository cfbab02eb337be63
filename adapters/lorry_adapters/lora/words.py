"""An adapter folder's text beside its weights: chat template, end tokens, added tokens, defaults
of generation, names of labels.

Trainers save the tokenizer's files with the adapter. The parts that matter are read once, within
bounds, and stored with the adapter's content as one small file:

    adapter_words.json    {"chat_templates": {"default": ...}, "end_tokens": [...],
                           "end_token_ids": [...], "special_tokens": {"bos_token": ...},
                           "added_tokens": [...], "generation": {...}, "labels": [...]}

A key is present only if the folder defines it. The files are untrusted and optional: a file that
cannot be read is ignored with a warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from lorry_adapters.lora.json_text import NotUtf8, text_of

WORDS_FILE: Final = "adapter_words.json"

TEMPLATE_FILE: Final = "chat_template.jinja"
TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
ADDED_FILE: Final = "added_tokens.json"
GENERATION_FILE: Final = "generation_config.json"
MODEL_CONFIG: Final = "config.json"

SOURCES: Final[tuple[str, ...]] = (
    WORDS_FILE,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    ADDED_FILE,
    GENERATION_FILE,
    MODEL_CONFIG,
)
"""The files that are read. If the first exists, the others are ignored."""

MAX_FILE: Final = 2 << 20
"""The most bytes read from each file. A tokenizer.json lists its tokens at its start."""

MAX_TEMPLATE: Final = 256 << 10
"""Characters."""

MAX_TOKENS: Final = 1024
MAX_LABELS: Final = 4096
_MAX_TEXT: Final = 256
"""Characters of a token or a label."""

NAMED: Final = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Special tokens that a chat template may refer to by name."""

GENERATION: Final[Mapping[str, Callable[[float], bool]]] = {
    "temperature": lambda value: 0 <= value <= 100,
    "top_k": lambda value: value >= 0 and value == int(value),
    "top_p": lambda value: 0 < value <= 1,
    "min_p": lambda value: 0 <= value <= 1,
    "typical_p": lambda value: 0 < value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 100,
}
"""Defaults that are read from a generation config, with their bounds."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token as tokenizer.json lists it."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """All of these texts. Fields that the folder does not define are empty."""

    chat_templates: Mapping[str, str] = field(default_factory=dict)
    """By name; `default` is used wherever there is no template of that name."""
    end_tokens: tuple[str, ...] = ()
    end_token_ids: tuple[int, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """By a name of `NAMED`."""
    added_tokens: tuple[AddedToken, ...] = ()
    generation: Mapping[str, float] = field(default_factory=dict)
    """By a name of `GENERATION`."""
    labels: tuple[str, ...] = ()
    """The labels of a classifier's head, in the order of its rows."""

    @property
    def brings(self) -> tuple[str, ...]:
        """Return the names, for people, of everything that is defined."""
        there = {
            "chat_template": self.chat_templates,
            "end_tokens": self.end_tokens or self.end_token_ids,
            "added_tokens": self.added_tokens,
            "generation": self.generation,
            "labels": self.labels,
        }
        return tuple(name for name, value in there.items() if value)


def read(folder: Path) -> tuple[Words, tuple[str, ...]]:
    """Read the files in `folder`. Return the texts and the warnings."""
    reader = _Reader(folder)
    if (folder / WORDS_FILE).is_file():
        return _stored(reader.json(WORDS_FILE), reader), tuple(reader.warnings)
    config = reader.json(TOKENIZER_CONFIG)
    generation = reader.json(GENERATION_FILE)
    special = {name: text for name in NAMED if (text := _content(config.get(name))) is not None}
    ends = generation.get("eos_token_id")
    words = Words(
        chat_templates=reader.templates(config),
        end_tokens=tuple(special[name] for name in ("eos_token",) if name in special),
        end_token_ids=reader.ids(GENERATION_FILE, ends if isinstance(ends, list) else [ends]),
        special_tokens=special,
        added_tokens=reader.added(config),
        generation=reader.generation(generation),
        labels=reader.labels(reader.json(MODEL_CONFIG).get("id2label")),
    )
    return words, tuple(reader.warnings)


def write(words: Words, folder: Path) -> None:
    """Write the content's file; nothing is written if nothing is defined."""
    if words.brings:
        there = {name: value for name, value in asdict(words).items() if value}
        text = json.dumps(there, indent=1, sort_keys=True, ensure_ascii=True)
        (folder / WORDS_FILE).write_text(f"{text}\n", encoding="utf-8")


def load(folder: Path) -> Words:
    """Read the file that `write` wrote to a content's folder."""
    if not (folder / WORDS_FILE).is_file():
        return Words()
    words, _ = read(folder)
    return words


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.warnings: list[str] = []

    def json(self, name: str) -> Mapping[str, Any]:
        """Return the object in a JSON file, or an empty one if there is no file."""
        text = self._text(name)
        try:
            value = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._passed_over(name, "it is not a JSON object")
            return {}
        return value

    def templates(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Read the templates. A file of its own overrides the tokenizer's config."""
        text = self._text(TEMPLATE_FILE)
        given = text or config.get("chat_template")
        if given is None:
            return {}
        where = TEMPLATE_FILE if text else f"{TOKENIZER_CONFIG}: chat_template"
        named = [{"name": "default", "template": given}] if isinstance(given, str) else given
        found: dict[str, str] = {}
        for one in named if isinstance(named, list) else [None]:
            name, template = _dict(one).get("name"), _dict(one).get("template")
            if not isinstance(name, str) or not isinstance(template, str) or len(found) == 16:
                self._passed_over(where, "it is not a template")
            elif len(template) > MAX_TEMPLATE:
                self._passed_over(where, f"it has more than {MAX_TEMPLATE} characters")
            else:
                found[name[:_MAX_TEXT]] = template
        return found

    def added(self, config: Mapping[str, Any]) -> tuple[AddedToken, ...]:
        listed = self._listed()
        if not listed:
            decoder = config.get("added_tokens_decoder")
            listed = [
                {"id": _number(key), **one} for key, one in _items(decoder) if isinstance(one, dict)
            ]
        if not listed:
            plain = self.json(ADDED_FILE)
            listed = [{"id": number, "content": content} for content, number in plain.items()]
        made = [_added(one) for one in listed[:MAX_TOKENS]]
        found = [one for one in made if one is not None]
        if len(found) < len(listed):
            self._passed_over(
                "part of the added tokens", f"{len(listed) - len(found)} of them are malformed"
            )
        return tuple(found)

    def generation(self, config: Mapping[str, Any]) -> dict[str, float]:
        # Like transformers: without do_sample the answer is greedy, whatever the other fields say.
        sampled = config.get("do_sample") is True
        found: dict[str, float] = {}
        for name, fits in GENERATION.items():
            value = config.get(name)
            if value is None or not (sampled or name == "repetition_penalty"):
                continue
            if isinstance(value, int | float) and not isinstance(value, bool) and fits(value):
                found[name] = value
            else:
                self._passed_over(f"{GENERATION_FILE}: {name}", f"it is {str(value)[:40]!r}")
        return found

    def ids(self, where: str, values: list[Any]) -> tuple[int, ...]:
        there = [value for value in values if value is not None]
        found = [value for value in there if type(value) is int and 0 <= value < 1 << 31]
        if len(found) < len(there) or len(found) > 64:
            self._passed_over(f"{where}: eos_token_id", "it is not a list of a few token ids")
            return ()
        return tuple(found)

    def labels(self, given: object) -> tuple[str, ...]:
        if given is None:
            return ()
        named = {_number(key): label for key, label in _items(given)}
        labels = [named.get(at) for at in range(len(named))]
        if not named or len(named) > MAX_LABELS or not all(map(_is_label, labels)):
            self._passed_over(f"{MODEL_CONFIG}: id2label", "it does not name labels from 0 on")
            return ()
        return tuple(str(label) for label in labels)

    def _listed(self) -> list[Any]:
        """Read the tokens listed in a tokenizer.json, which come before its large parts."""
        text = self._text(TOKENIZER_FILE)
        at = re.search(r'"added_tokens"\s*:\s*(?=\[)', text)
        if at is None:
            return []
        try:
            listed, _ = json.JSONDecoder().raw_decode(text, at.end())
        except (ValueError, RecursionError):
            self._passed_over(f"{TOKENIZER_FILE}: added_tokens", "it cannot be read")
            return []
        return listed if isinstance(listed, list) else []

    def _text(self, name: str) -> str:
        """Return the file's text, empty if it is missing or too large."""
        path = self._folder / name
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if name == TOKENIZER_FILE:
            return data.decode("utf-8", errors="replace")
        if len(data) > MAX_FILE:
            self._passed_over(name, f"it has more than {MAX_FILE} bytes")
            return ""
        try:
            return text_of(data)
        except NotUtf8 as error:
            self._passed_over(name, f"it {error}")
            return ""

    def _passed_over(self, what: str, why: str) -> None:
        self.warnings.append(f"{what} is not used: {why}")


def _stored(value: Mapping[str, Any], reader: _Reader) -> Words:
    """Check a stored file like the others, since it may have come with an upload."""
    generation = value.get("generation")
    added = value.get("added_tokens")
    special = _dict(value.get("special_tokens"))
    templates = [{"name": k, "template": v} for k, v in _items(value.get("chat_templates"))]
    ends = value.get("end_tokens")
    ids = value.get("end_token_ids")
    found = [_added(one) for one in added] if isinstance(added, list) else []
    labels = value.get("labels")
    return Words(
        chat_templates=reader.templates({"chat_template": templates or None}),
        end_tokens=tuple(
            text for one in (ends if isinstance(ends, list) else [])[:16] if (text := _content(one))
        ),
        end_token_ids=reader.ids(WORDS_FILE, ids if isinstance(ids, list) else []),
        special_tokens={
            name: text for name in NAMED if (text := _content(special.get(name))) is not None
        },
        added_tokens=tuple(one for one in found[:MAX_TOKENS] if one is not None),
        generation=reader.generation({**_dict(generation), "do_sample": True}),
        labels=reader.labels(dict(enumerate(labels)) if isinstance(labels, list) else None),
    )


def _added(value: object) -> AddedToken | None:
    if not isinstance(value, dict):
        return None
    number, content = value.get("id"), value.get("content")
    if type(number) is not int or not 0 <= number < 1 << 31 or not isinstance(content, str):
        return None
    if not 0 < len(content) <= _MAX_TEXT:
        return None
    flags = ("special", "single_word", "lstrip", "rstrip", "normalized")
    return AddedToken(number, content, **{flag: value.get(flag) is True for flag in flags})


def _content(value: object) -> str | None:
    """Return a special token given as a string or, in older files, as an object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and 0 < len(content) <= _MAX_TEXT else None


def _number(text: object) -> int:
    """Return a key as a number, or -1 if it is not one."""
    return int(str(text)) if re.fullmatch(r"[0-9]{1,9}", str(text)) else -1


def _is_label(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[tuple[Any, Any]]:
    return list(_dict(value).items())
