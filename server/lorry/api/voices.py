"""What a request's adapter makes of text: its tokenizer and chat template, the tokens that end
its answers, its defaults of generation, its labels. What it does not bring is the base's.

Only an adapter that is used alone speaks with its own: a sum of several, and one at strength
zero, has the base's, and so has everything under `--adapter-templates ignore`.
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
from lorry_adapters.errors import AdapterBroken, AdapterError, UnknownAdapter
from lorry_adapters.lora import words
from lorry_adapters.lora.words import AddedToken, Words
from lorry_adapters.registry.record import AdapterChoice, VersionRecord
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.startup_check import FILES_GONE

_KEPT = 64
"""Voices."""

_RENDERED_AT_ONCE = 4
"""Chats by adapters' templates."""


@dataclass(frozen=True, slots=True)
class Voice:
    prompts: Prompts
    ends: frozenset[int]
    """Tokens that end an answer."""
    added: tuple[AddedToken, ...] = ()
    """Tokens that it has beside the base's, or in their place."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Of sampling, where a request says nothing: `lora.words.GENERATION`."""
    labels: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """What of its words is not used, and why."""

    def constraint(self, grammar: Grammar | None, rules: Rules | None = None) -> Constraint | None:
        """Over its own tokens; None where everything may come."""
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
        """`use`: False for the base's voice whatever is asked for."""
        self._tokenizer = tokenizer
        self._registry = registry
        self._use = use
        self._templates = OwnTemplates()
        # A template that takes long must take neither the event loop nor the threads of others.
        self._rendering = ThreadPoolExecutor(_RENDERED_AT_ONCE, thread_name_prefix="lorry-template")
        # Its own template is rendered here; one that a request brings is not.
        own = AdapterTokenizer(
            tokenizer, Words(), self._templates, vocab_size=base.prompts.vocab_size
        )
        self.base = replace(base, prompts=base.prompts.with_tokenizer(own, self._rendering))
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Voice] = OrderedDict()

    async def of(
        self, choices: tuple[AdapterChoice, ...]
    ) -> tuple[Voice, tuple[AdapterChoice, ...]]:
        """The voice, and the choices with the version that it is of: a new version must not
        come between a prompt and its answer. Raises AdapterBroken."""
        found = self._version(choices)
        if found is None:
            return self.base, choices
        fixed = (replace(choices[0], version=found.version),)
        with self._lock:
            kept = self._kept.get(found.digest)
            if kept is not None:
                self._kept.move_to_end(found.digest)
                return kept, fixed
        return await asyncio.to_thread(self._made, fixed, found.digest), fixed

    async def left_out(self, name: str, version: VersionRecord) -> list[str]:
        """What a version brings and is not used, for people. Empty where it cannot be served
        at all."""
        if not self._use:
            return [f"{one}: --adapter-templates is ignore" for one in version.words]
        try:
            voice, _ = await self.of((AdapterChoice(name, version.version, scale=1.0),))
        except AdapterError:
            return []
        return list(voice.left_out)

    def _version(self, choices: Sequence[AdapterChoice]) -> VersionRecord | None:
        """Of the adapter that speaks for itself."""
        if not self._use or len(choices) != 1 or choices[0].digest is not None:
            return None
        (choice,) = choices
        try:
            record = self._registry.get(choice.name)
        except UnknownAdapter:
            return None
        scale = record.scale if choice.scale is None else choice.scale
        number = record.current.version if choice.version is None else choice.version
        found = next((one for one in record.versions if one.version == number), None)
        return found if found is not None and found.words and scale != 0 else None

    def _made(self, choices: tuple[AdapterChoice, ...], digest: str) -> Voice:
        # A lease, or the files could go while they are read.
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
            f"token {token.content!r} ({token.id}): this base has another in its place, or none"
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
