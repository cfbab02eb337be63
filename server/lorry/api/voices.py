"""A request's words: the tokenizer and chat template, the tokens that end its answers, sampling
defaults, labels. They come from its adapter or, if the adapter does not bring them, from the base.

Only a single adapter uses its own. A sum of several, an adapter at strength zero, and everything
under `--adapter-templates ignore` use the base's.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerFast

from lorry.api.adapter_tokenizer import AdapterTokenizer
from lorry.api.own_template import OwnTemplates
from lorry.api.prompts import Prompts
from lorry.constraint import Constraint, Grammar, Rules, Vocabulary
from lorry_adapters.errors import AdapterBroken, AdapterError, InvalidSelection, UnknownAdapter
from lorry_adapters.lora import words
from lorry_adapters.lora.words import AddedToken, Words
from lorry_adapters.registry.record import AdapterChoice, VersionRecord
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.startup_check import FILES_GONE

_KEPT = 64
"""Voices that are kept."""

_RENDERED_AT_ONCE = 4
"""Threads for chats with adapters' templates."""


@dataclass(frozen=True, slots=True)
class Voice:
    prompts: Prompts
    ends: frozenset[int]
    """Tokens that end an answer."""
    added: tuple[AddedToken, ...] = ()
    """Tokens in addition to the base's, or in their place."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """For sampling, if the request does not set them: `lora.words.GENERATION`."""
    labels: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """The words that are not used, with reasons."""

    def constraint(self, grammar: Grammar | None, rules: Rules | None = None) -> Constraint | None:
        """Return a constraint over its own tokens; None if everything may come."""
        if grammar is None and rules is None:
            return None
        return Constraint(grammar, rules, Vocabulary(self.added, self.ends))


class Voices:
    """Thread-safe."""

    def __init__(
        self,
        base: Voice,
        tokenizer: PreTrainedTokenizerFast,
        registry: Registry,
        *,
        use: bool = True,
    ) -> None:
        """`use`: False uses the base's voice for all requests."""
        self._tokenizer = tokenizer
        self._registry = registry
        self._use = use
        self._templates = OwnTemplates()
        # A slow template must block neither the event loop nor the threads of other work.
        self._rendering = ThreadPoolExecutor(_RENDERED_AT_ONCE, thread_name_prefix="lorry-template")
        # The base's own template is rendered here; one from a request is not.
        own = AdapterTokenizer(
            tokenizer, Words(), self._templates, vocab_size=base.prompts.vocab_size
        )
        self.base = replace(base, prompts=base.prompts.with_tokenizer(own, self._rendering))
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Voice] = OrderedDict()

    async def of(
        self, choices: tuple[AdapterChoice, ...]
    ) -> tuple[Voice, tuple[AdapterChoice, ...]]:
        """Return the voice, and the choices with the voice's version: a new version must not come
        between a prompt and its answer. Raises AdapterBroken."""
        found = self._version(choices)
        if found is None:
            return self.base, choices
        name, version = found
        fixed = (replace(choices[0], name=name, version=version.version),)
        with self._lock:
            kept = self._kept.get(version.digest)
            if kept is not None:
                self._kept.move_to_end(version.digest)
                return kept, fixed
        return await asyncio.to_thread(self._made, fixed, version.digest), fixed

    async def left_out(self, name: str, version: VersionRecord) -> list[str]:
        """Return the words of a version that are not used, for people. Empty if the version cannot
        be served at all."""
        if not self._use:
            return [f"{one}: --adapter-templates is ignore" for one in version.words]
        try:
            voice, _ = await self.of((AdapterChoice(name, version.version, scale=1.0),))
        except AdapterError:
            return []
        return list(voice.left_out)

    def _version(self, choices: Sequence[AdapterChoice]) -> tuple[str, VersionRecord] | None:
        """Return the adapter's name and its version, if that uses its own words."""
        if not self._use or len(choices) != 1 or choices[0].digest is not None:
            return None
        (choice,) = choices
        try:
            record, version = self._registry.resolve(choice)
        except (UnknownAdapter, InvalidSelection):
            return None
        scale = record.scale if choice.scale is None else choice.scale
        return (record.name, version) if version.words and scale != 0 else None

    def _made(self, choices: tuple[AdapterChoice, ...], digest: str) -> Voice:
        # With a lease: otherwise the files could be removed while they are read.
        lease = self._registry.acquire(choices)
        try:
            own = words.load(self._registry.folder(digest))
        finally:
            lease.release()
        if not own.brings:
            raise AdapterBroken(f"adapter {choices[0].name!r}: {FILES_GONE}")
        voice = self._voice(own)
        with self._lock:
            self._kept[digest] = voice
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return voice

    def _voice(self, own: Words) -> Voice:
        base = self.base
        tokenizer = AdapterTokenizer(
            self._tokenizer, own, self._templates, vocab_size=base.prompts.vocab_size
        )
        prompts = base.prompts.with_tokenizer(
            tokenizer, self._rendering, foreign=bool(own.chat_templates)
        )
        ends = set(base.ends)
        left_out = [
            f"token {token.content!r} ({token.id}): this base has another at its id, or no such id"
            for token in tokenizer.left_out
        ]
        for text in own.end_tokens:
            number = tokenizer.backend_tokenizer.token_to_id(text)
            if number is None or number >= prompts.vocab_size:
                left_out.append(f"end token {text!r}: this base has no such token")
            else:
                ends.add(number)
        for number in own.end_token_ids:
            if number < prompts.vocab_size:
                ends.add(number)
            else:
                left_out.append(f"end token {number}: this base has {prompts.vocab_size} tokens")
        # Most adapters bring the base's own tokenizer.
        same = tokenizer.backend_tokenizer is self._tokenizer.backend_tokenizer
        added = () if same else own.added_tokens
        return Voice(prompts, frozenset(ends), added, own.generation, own.labels, tuple(left_out))
