"""LoRA and everything that PEFT's LoRA config can add to it.

    <linear>.lora_A.weight      [r, in]     the pair
    <linear>.lora_B.weight      [out, r]
    <linear>.lora_B.bias        [out]       lora_bias
    <linear>.lora_magnitude_vector [out]    use_dora
    <embedding>.lora_embedding_A [r, vocabulary], lora_embedding_B [width, r]
    <embedding>.lora_magnitude_vector [width]    use_dora
    <experts>.lora_A.weight, ...        of all experts: see `parameters`

and the base's own parts, trained (`own_parts`): biases, saved modules and token rows.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.config_fields import Fields
from lorry_adapters.lora.effects import Dora, PairBias
from lorry_adapters.lora.keys import LINEAR, PREFIX, Keys, check_shapes, sort_keys, unexpected
from lorry_adapters.lora.methods.initialisation import check_initialisation
from lorry_adapters.lora.methods.method import Method
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.methods.own_tensors import OwnParts
from lorry_adapters.lora.methods.pairs import (
    PairKeys,
    disagreements,
    find_pairs,
    find_ranks,
    not_linear,
    read_rules,
)
from lorry_adapters.lora.methods.variants import Variant, read_variant
from lorry_adapters.lora.parameters import STACKED, Known, NamedParameters, known_as
from lorry_adapters.lora.parts import FileContents, LoraPair, Parts
from lorry_adapters.lora.patterns import Budget, SuffixRules
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.replaced import EmbeddingDora, EmbeddingPair
from lorry_adapters.lora.target_modules import Targets, read_targets
from lorry_adapters.lora.tensor_file import TensorFile

_PEFT_DEFAULT: Final = 8
"""PEFT's default of both `r` and `lora_alpha`, for a config without them."""

_HARMLESS: Final = frozenset(
    {
        "corda_config",  # only with init_lora_weights "corda", refused below
        "eva_config",
        "lora_dropout",  # training only
        "lora_dtype",  # ms-swift: the dtype of A and B during training; the file has its own
        "lorap_emb_lr",  # ms-swift: learning rates
        "lorap_lr_ratio",
        "lora_ga_config",
        "megatron_core",  # a module's name, used with megatron_config
        "merge_weights",  # PEFT before 0.3: whether eval() merged them for speed
    }
)

_NOT_SERVED: Final = {
    "arrow_config": "Arrow routing; upload the adapters that it routes between, and name several "
    "of them with their scales in a request",
    "layer_replication": "layer replication; train it on the layers that the base has",
    "loftq_config": "LoftQ; it is relative to its own quantized base: train it as a LoRA",
    "megatron_config": "Megatron; train it with PEFT on transformers' own linears",
}

_PARAMETERS: Final = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
)

_EXPECTED: Final = f"{PREFIX}<module>.lora_A.weight or .lora_B.weight"


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Created by `read_lora` only."""

    peft_type: str
    base_model: str | None
    task_type: str
    targets: Targets
    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    rank_pattern: Mapping[str, int]
    """In the config's order: the first that matches a module wins."""
    alpha_pattern: Mapping[str, float]
    invocation: tuple[int, ...]
    own: OwnPartsFields
    variant: Variant
    parameters: NamedParameters
    _ranks: SuffixRules[int] = field(repr=False, compare=False)
    _alphas: SuffixRules[float] = field(repr=False, compare=False)

    def rank_of(self, module: str, budget: Budget | None = None) -> int:
        """Return the rank of `module`, a dotted path in the base."""
        budget = Budget() if budget is None else budget
        rank = self._ranks.find(module, budget)
        return self.r if rank is None else rank

    def scaling_of(self, module: str, budget: Budget | None = None) -> float:
        """Return the factor of B·A·x at scale 1: alpha/r, or alpha/sqrt(r) for rsLoRA."""
        budget = Budget() if budget is None else budget
        rank = self.rank_of(module, budget)
        alpha = self._alphas.find(module, budget)
        alpha = self.lora_alpha if alpha is None else alpha
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        known = known_as(layout, self.parameters, file, problems)
        layout = known.layout
        keys = sort_keys(file, layout, (*_PARAMETERS, *self.variant.parameters), problems)
        own = read_own_parts(self.own, self.targets, file, layout, keys.rest, problems)
        problems.extend(unexpected(own.unknown, _EXPECTED))
        pairs = find_pairs(
            keys, layout, problems, a="lora_A.weight", b="lora_B.weight", kinds=(*LINEAR, *STACKED)
        )
        ranks = find_ranks(file, pairs, problems, self.variant.widths)
        modules = {name: pair.module for name, pair in pairs.items()}
        problems.extend(self.variant.problems(file, keys, modules, ranks))
        tables = _tables(keys, layout, problems)
        ranks |= _table_ranks(file, tables, problems)
        experts = [name for name in pairs if known.is_special(name)]
        if self.variant.name not in ("", "use_qalora") and tables:
            problems.append(f"PEFT does not make {self.variant.name} on embeddings: {some(tables)}")
        if self.invocation and (own.modules or tables or experts):
            problems.append(
                "activated LoRA (alora_invocation_tokens) is served on linear modules only; this "
                f"adapter changes others: {some([*own.modules, *tables, *experts])}"
            )
        head = self._tied_head(layout, {**pairs, **tables})
        if head is not None:
            table = tables[layout.input_embedding or ""]
            own.transposed += [
                (table.a_key, pairs[head].b_key),
                (table.b_key, pairs[head].a_key),
            ]
        extras = {"use_dora": self.use_dora, "lora_bias": self.lora_bias}
        for name in [name for name, asked in extras.items() if asked] or [self.variant.name]:
            if name and experts:
                problems.append(f"{name} on experts and routers is not served: {some(experts)}")
        if sound:
            self._check_extras(file, keys, pairs, tables, problems)
            try:
                self._check_config(known, {**pairs, **tables}, ranks, problems)
            except InvalidAdapter as error:
                problems.extend(error.problems)
        return FileContents(
            modules=tuple(dict.fromkeys([*map(known.path_of, pairs), *tables, *own.modules])),
            ranks=ranks,
            labels=own.labels,
            warnings=tuple(known.warnings(ranks)),
            read=lambda: self._read(file, known, keys, pairs, tables, own),
        )

    def _check_extras(
        self,
        file: TensorFile,
        keys: Keys,
        pairs: Mapping[str, PairKeys],
        tables: Mapping[str, PairKeys],
        problems: list[str],
    ) -> None:
        for parameter, wanted, name, carriers in (
            ("lora_B.bias", self.lora_bias, "lora_bias", pairs),
            ("lora_magnitude_vector", self.use_dora, "use_dora", {**pairs, **tables}),
        ):
            found = keys.of(parameter)
            if found and not wanted:
                problems.append(
                    f"the file has {parameter}, but the config has no {name}: {some(found)}"
                )
            missing = [module for module in carriers if module not in found]
            if wanted and missing:
                problems.append(
                    f"the config sets {name}, but the file lacks it for {some(missing)}"
                )
            stray = [module for module in found if module not in carriers]
            if stray:
                problems.append(f"{parameter} without a pair of matrices: {some(stray)}")
            shapes = {
                key: (carriers[module].module.out_features,)
                for module, key in found.items()
                if module in carriers
            }
            check_shapes(file, shapes, problems)

    def _check_config(
        self,
        known: Known,
        found: Mapping[str, object],
        ranks: Mapping[str, int],
        problems: list[str],
    ) -> None:
        budget = Budget()
        twin = self._tied_head(known.layout, found)
        targeted = {name: pair for name, pair in found.items() if name != twin}
        problems.extend(
            disagreements(
                self.targets,
                known.layout,
                budget,
                targeted,
                kinds=(*LINEAR, *STACKED, ModuleKind.EMBEDDING),
                also=known.targets,
                refused=not_linear,
            )
        )
        for name, rank in ranks.items():
            if self.rank_of(name, budget) != rank:
                problems.append(
                    f"{shown(name)} has rank {rank} in the file and "
                    f"{self.rank_of(name, budget)} in the config"
                )

    def _tied_head(self, layout: BaseLayout, found: Container[str]) -> str | None:
        """Return the head if ensure_weight_tying gives it the embedding's own pair, transposed.
        PEFT saves the pair there, too, and removes the head from the targets."""
        table, head = layout.input_embedding, layout.output_embedding
        if not (self.own.tied and layout.tied and table in found and head in found):
            return None
        return head

    def _read(
        self,
        file: TensorFile,
        known: Known,
        keys: Keys,
        pairs: Mapping[str, PairKeys],
        tables: Mapping[str, PairKeys],
        own: OwnParts,
    ) -> Parts:
        parts, budget = Parts(), Budget()
        special: dict[str, LoraPair] = {}
        for name, pair in pairs.items():
            stored = file.read(pair.a_key), file.read(pair.b_key)
            scaling = self.scaling_of(name, budget)
            mine = keys.modules[name]
            if known.is_special(name):
                special[name] = LoraPair(*stored, scaling)
                continue
            a_RI, b_OR = self.variant.pair(file, pair.module, mine, stored)
            beside = self.variant.effect(mine, a_RI.shape[0])
            if beside is not None:
                parts.add(name, beside)
            if self.use_dora:
                magnitude_O = file.read(mine["lora_magnitude_vector"])
                parts.add(name, Dora(a_RI, b_OR, magnitude_O, scaling))
            else:
                parts.pairs[name] = LoraPair(a_RI, b_OR, scaling)
            if self.lora_bias:
                parts.add(name, PairBias(file.read(mine["lora_B.bias"]), scaling))
        for name, pair in tables.items():
            scaling = self.scaling_of(name, budget)
            a_RV, b_HR = file.read(pair.a_key), file.read(pair.b_key)
            if self.use_dora:
                magnitude_H = file.read(keys.modules[name]["lora_magnitude_vector"])
                parts.add(name, EmbeddingDora(a_RV, b_HR, magnitude_H, scaling))
            else:
                parts.add(name, EmbeddingPair(a_RV, b_HR, scaling))
        known.add(parts, special)
        own.read(parts)
        return parts


def read_lora(fields: Fields, name: str) -> LoraSpec:
    """Read a config. If `fields` get problems, return what is known of the config nevertheless."""
    task_type = fields.task_type()
    check_initialisation(fields)
    r = fields.take("r", check.rank, _PEFT_DEFAULT, required=True)
    alpha = fields.take("lora_alpha", check.alpha, float(_PEFT_DEFAULT), required=True)
    use_rslora = fields.take("use_rslora", check.boolean, False)
    use_dora = fields.take("use_dora", check.boolean, False)
    lora_bias = fields.take("lora_bias", check.boolean, False)
    # How the base stores its weights; it does not matter for A and B.
    fields.take("fan_in_fan_out", check.boolean, False)
    base_model = fields.base_model()
    rank_pattern = fields.take("rank_pattern", check.mapping(check.rank), {})
    alpha_pattern = fields.take("alpha_pattern", check.mapping(check.alpha), {})
    invocation = fields.take("alora_invocation_tokens", check.token_ids, ())
    parameters = NamedParameters.read(fields)
    targets = read_targets(fields, optional=bool(parameters.targets))
    own = OwnPartsFields.read(fields)
    if use_dora and lora_bias:
        fields.problems.append("PEFT does not make a LoRA with both use_dora and lora_bias")
    if use_dora and invocation:
        fields.problems.append("use_dora and alora_invocation_tokens are not served together")
    variant = read_variant(fields)
    if variant.name and (use_dora or invocation):
        other = "use_dora" if use_dora else "alora_invocation_tokens"
        fields.problems.append(f"PEFT does not make a LoRA with both {variant.name} and {other}")
    ranks = read_rules(fields, "rank_pattern", rank_pattern)
    alphas = read_rules(fields, "alpha_pattern", alpha_pattern)
    fields.refuse_the_rest(_HARMLESS, _NOT_SERVED)
    return LoraSpec(
        peft_type=name,
        base_model=base_model,
        task_type=task_type,
        targets=targets,
        r=r,
        lora_alpha=alpha,
        use_rslora=use_rslora,
        use_dora=use_dora,
        lora_bias=lora_bias,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        invocation=invocation,
        own=own,
        variant=variant,
        parameters=parameters,
        _ranks=ranks,
        _alphas=alphas,
    )


def _tables(keys: Keys, layout: BaseLayout, problems: list[str]) -> dict[str, PairKeys]:
    """Return the pairs on embeddings by module."""
    found = {}
    a_keys, b_keys = keys.of("lora_embedding_A"), keys.of("lora_embedding_B")
    for name in dict.fromkeys([*a_keys, *b_keys]):
        module = layout.modules[name]
        if module.kind is not ModuleKind.EMBEDDING:
            problems.append(f"{shown(name)} has lora_embedding_A or _B, but is not an embedding")
        elif name in a_keys and name in b_keys:
            found[name] = PairKeys(module, a_keys[name], b_keys[name])
        else:
            half, other = ("A", "B") if name in a_keys else ("B", "A")
            problems.append(
                f"{shown(name)} has lora_embedding_{half}, but no lora_embedding_{other}"
            )
    return found


def _table_ranks(
    file: TensorFile, tables: Mapping[str, PairKeys], problems: list[str]
) -> dict[str, int]:
    ranks = {}
    for name, pair in tables.items():
        a, b = file.entries[pair.a_key].shape, file.entries[pair.b_key].shape
        vocabulary, width = pair.module.in_features, pair.module.out_features
        if len(a) != 2 or a[0] < 1 or a[1] != vocabulary:
            problems.append(
                f"{shown(pair.a_key)} is {list(a)}; this base needs [rank, {vocabulary}]"
            )
        elif len(b) != 2 or b != (width, a[0]):
            problems.append(f"{shown(pair.b_key)} is {list(b)}; this needs [{width}, {a[0]}]")
        else:
            ranks[name] = a[0]
    return ranks


LORA: Final = Method("LORA", "LoRA", read_lora, ("lora_",))
METHODS: Final = (LORA,)
