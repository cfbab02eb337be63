"""The keys of the base's own parts in an adapter's file, and their effect.

`own_parts` finds these keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.effects import OwnBias
from lorry_adapters.lora.parts import ClassifierHead, Parts
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.replaced import OwnModule, TokenLogits, TokenRows
from lorry_adapters.lora.tensor_file import TensorFile

_TIED: Final = ("embed_tokens", "lm_head")
"""PEFT's EMBEDDING_LAYER_NAMES: ensure_weight_tying ties no module with another name."""
_LEAST: Final = 0.9
"""The least part of a base's tokens in a table that was saved without the padding. A smaller
table belongs to something else."""


@dataclass(slots=True, eq=False)
class OwnParts:
    """The keys of the base's own parts in the file."""

    file: TensorFile
    layout: BaseLayout
    tied: bool
    weights: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    same: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of keys of one tensor that is in the file twice."""
    transposed: list[tuple[str, str]] = field(default_factory=list)
    """Like `same`, with one of the two transposed."""
    saved: set[str] = field(default_factory=set)
    """Modules that are replaced entirely."""
    tokens: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    score: dict[str, str] = field(default_factory=dict)
    """A classifier's head: the keys of its `weight` and `bias`."""
    unknown: list[str] = field(default_factory=list)
    """Keys of nothing that is known here."""

    @property
    def labels(self) -> int:
        return self.file.entries[self.score["weight"]].shape[0] if "weight" in self.score else 0

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.weights, *self.biases, *self.tokens]))

    def is_shorter_table(self, module: BaseModule, parameter: str, shape: tuple[int, ...]) -> bool:
        """Return whether the table has fewer tokens than the base: see `vocabulary`. If the base
        caps its logits, the missing tokens could become answers."""
        is_head = module.name == self.layout.output_embedding
        if module.name != self.layout.input_embedding and not is_head:
            return False
        whole = shape_of(module, parameter)
        fits = len(shape) == len(whole) and shape[1:] == whole[1:]
        shorter = fits and whole[0] * _LEAST <= shape[0] < whole[0]
        return shorter and not (is_head and self.layout.caps_logits)

    def read(self, parts: Parts) -> None:
        """Add the effects to `parts`. Raises InvalidAdapter if two copies of a tensor differ."""
        problems = [
            f"{shown(one)} and {shown(other)} are one trained tensor, but the file contains two "
            "that differ, and does not say which of them was trained"
            for pairs, turned in ((self.same, False), (self.transposed, True))
            for one, other in pairs
            if not self._equal(one, other, turned)
        ]
        if problems:
            raise InvalidAdapter(problems)
        if "weight" in self.score:
            score_bias = self.score.get("bias")
            bias_L = None if score_bias is None else self.file.read(score_bias)
            parts.score = ClassifierHead(self.file.read(self.score["weight"]), bias_L)
        for name, effect in (*self._modules().items(), *self._rows().items()):
            parts.add(name, effect)

    def _equal(self, one: str, other: str, turned: bool) -> bool:
        its = self.file.read(other)
        return torch.equal(self.file.read(one), its.T if turned else its)

    def _modules(self) -> dict[str, OwnModule | OwnBias]:
        found: dict[str, OwnModule | OwnBias] = {}
        for name in dict.fromkeys([*self.weights, *self.biases]):
            weight_key, bias_key = self.weights.get(name), self.biases.get(name)
            weight = None if weight_key is None else self.file.read(weight_key)
            bias = None if bias_key is None else self.file.read(bias_key)
            if name in self.saved or weight is not None:
                transposed = self.layout.modules[name].kind is ModuleKind.CONV1D
                module = OwnModule(weight, bias, transposed, asked=name in self.saved)
                found |= dict.fromkeys(self._twins(name), module)
            else:
                assert bias is not None
                found[name] = OwnBias(bias)
        return found

    def _rows(self) -> dict[str, TokenRows | TokenLogits]:
        found: dict[str, TokenRows | TokenLogits] = {}
        for name, (key, ids) in self.tokens.items():
            rows_KH = self.file.read(key)
            ids_K = torch.tensor(ids, dtype=torch.int64)
            is_table = self.layout.modules[name].kind is ModuleKind.EMBEDDING
            found[name] = (TokenRows if is_table else TokenLogits)(ids_K, rows_KH)
            head = self.layout.output_embedding
            shared = name == self.layout.input_embedding and self.layout.tied
            if shared and head is not None and head not in self.tokens:
                found[head] = TokenLogits(ids_K, rows_KH)
        return found

    def _twins(self, name: str) -> Iterator[str]:
        """Yield the module and the modules that share its table: with ensure_weight_tying if it was
        saved as a module; always if the base's table itself was changed."""
        yield name
        pair = (self.layout.input_embedding, self.layout.output_embedding)
        named = name.rpartition(".")[2] in _TIED
        shares = name not in self.saved or (self.tied and named)
        if shares and self.layout.tied and name in pair:
            for other in pair:
                if other is not None and other != name and other not in self.weights:
                    yield other


def shape_of(module: BaseModule, parameter: str) -> tuple[int, ...]:
    """Return the shape of the base's own `weight` or `bias` as it is stored."""
    if parameter == "bias" or module.kind is ModuleKind.OTHER:
        return (module.out_features,)
    if module.kind is ModuleKind.LINEAR:
        return (module.out_features, module.in_features)
    return (module.in_features, module.out_features)
