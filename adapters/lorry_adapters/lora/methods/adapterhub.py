"""Bottleneck adapters as AdapterHub's library saves them (`adapters`, adapterhub.ml).

    <layers>.<i>.attention_adapters.adapters.<name>.adapter_down.0.weight   [R, H]
    <layers>.<i>.output_adapters.adapters.<name>.adapter_up.weight          [H, R]
    ... and their biases, and `scaling` if it is trained

Houlsby's (`double_seq_bn`), Pfeiffer's (`seq_bn`), He's parallel ones (`par_bn`) and
AdapterPlus are settings of one config. Every model served here has its norms before its
sublayers. There, no adapter uses the layer's own norm, and `original_ln_before`,
`original_ln_after` and `residual_before_ln` only decide what the bottleneck reads and how often
the residual stream is added. An adapter that would add it twice or never is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from lorry_adapters.lora import config_fields as check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.bottleneck import ACTIVATIONS, Bottleneck, Reads, Remembered, Stream
from lorry_adapters.lora.config_fields import Fields, Wrong
from lorry_adapters.lora.keys import check_shapes
from lorry_adapters.lora.methods.method import Gate, Method
from lorry_adapters.lora.parts import FileContents, Parts, SpecBase
from lorry_adapters.lora.problems import shown, some
from lorry_adapters.lora.tensor_file import DTYPES, TensorFile

_ATTENTION: Final = "attention_adapters"
_OUTPUT: Final = "output_adapters"


@dataclass(frozen=True, slots=True)
class Sites:
    """The positions of the library's bottlenecks in an architecture."""

    layers: str
    """Path of the list of layers below the model's body."""
    norms: Mapping[str, str]
    """By position: the norm whose input is the residual stream."""
    linears: Mapping[str, str]
    """By position: the linear whose output is added to the stream."""


_LLAMA: Final = Sites(
    "layers",
    {_ATTENTION: "input_layernorm", _OUTPUT: "post_attention_layernorm"},
    {_ATTENTION: "self_attn.o_proj", _OUTPUT: "mlp.down_proj"},
)
SITES: Final[Mapping[str, Sites]] = {
    "GPT2LMHeadModel": Sites(
        "h",
        {_ATTENTION: "ln_1", _OUTPUT: "ln_2"},
        {_ATTENTION: "attn.c_proj", _OUTPUT: "mlp.c_proj"},
    ),
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
}
"""The decoders for which the library itself has adapters, by the base's class."""

_PARAMETERS: Final = (
    "adapter_down.0.weight",
    "adapter_down.0.bias",
    "adapter_up.weight",
    "adapter_up.bias",
)
_SCALING: Final = "scaling"

_RENAMED: Final = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""Activations in configs older than the library's version field."""

_NOT_SERVED: Final = {
    "cross_adapter": "an adapter after cross-attention",
    "inv_adapter": "an invertible adapter",
    "invertible_adapter": "an invertible adapter",
    "ln_after": "a norm of the adapter's own",
    "ln_before": "a norm of the adapter's own",
    "phm_layer": "Compacter (PHM layers)",
    "use_gating": "gating",
}
_HARMLESS: Final = frozenset(
    {
        "adapter_residual_before_ln",  # belongs to ln_after
        "dropout",
        "init_weights",
        "init_weights_seed",
        "inv_adapter_reduction_factor",  # belongs to inv_adapter
        "stochastic_depth",
        # These belong to phm_layer.
        "factorized_phm_W",
        "factorized_phm_rule",
        "hypercomplex_nonlinearity",
        "learn_phm",
        "phm_bias",
        "phm_c_init",
        "phm_dim",
        "phm_init_range",
        "phm_rank",
        "shared_W_phm",
        "shared_phm_rule",
    }
)
_ABOUT: Final = frozenset({"config_id", "hidden_size", "label2id", "model_type", "name", "version"})
"""Metadata beside the config itself."""


@dataclass(frozen=True, slots=True)
class BottleneckSpec(SpecBase):
    """Created by `read_bottleneck` only."""

    places: tuple[str, ...]
    activation: str
    reads: Reads
    reductions: Mapping[str, float]
    """By the layer's number; `default` for the others."""
    strength: float | str
    """A number, or `learned` or `channel`: trained, one in all or one per output."""
    leave_out: frozenset[int]

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        sites = SITES.get(layout.architecture)
        width = layout.modules[layout.input_embedding].out_features if layout.input_embedding else 0
        if sites is None or not width:
            problems.append(
                f"bottleneck adapters are served on {', '.join(SITES)}; the base {layout.name} is "
                f"{layout.architecture}"
            )
            return FileContents(modules=(), read=Parts)
        before = len(problems)
        found = _sorted(file, layout, sites, problems)
        if sound:
            problems.extend(self._disagreements(found, layout.num_layers))
        shapes: dict[str, tuple[int, ...]] = {}
        for (layer, _), mine in found.items():
            shapes |= self._shapes(layer, mine, width, problems)
        check_shapes(file, shapes, problems)
        if len(problems) == before and not any(
            file.read(mine[key]).any() for mine in found.values() for key in _PARAMETERS[2:]
        ):
            problems.append(
                "the adapter changes nothing: every adapter_up is zero, as before any training"
            )
        root = _root(layout, sites)

        def read() -> Parts:
            parts = Parts()
            for (layer, place), mine in found.items():
                stream = None if self.reads is Reads.ANSWER else Stream()
                if stream is not None:
                    parts.add(f"{root}{layer}.{sites.norms[place]}", Remembered(stream))
                down_RH, down_R, up_HR, up_H = (file.read(mine[key]) for key in _PARAMETERS)
                strength = (
                    file.read(mine[_SCALING])
                    if isinstance(self.strength, str)
                    else torch.tensor([self.strength])
                )
                parts.add(
                    f"{root}{layer}.{sites.linears[place]}",
                    Bottleneck(
                        down_RH,
                        down_R,
                        up_HR,
                        up_H,
                        strength,
                        self.activation,
                        self.reads,
                        stream,
                    ),
                )
            return parts

        modules = tuple(f"{root}{layer}.{sites.linears[place]}" for layer, place in found)
        return FileContents(modules=modules, read=read)

    def _disagreements(self, found: Mapping[tuple[int, str], object], layers: int) -> Iterator[str]:
        wanted = {
            (layer, place)
            for layer in range(layers)
            if layer not in self.leave_out
            for place in self.places
        }
        missing = sorted(wanted - found.keys())
        more = sorted(found.keys() - wanted)
        if missing:
            yield f"the config asks for {_names(missing)}, which the file does not contain"
        if more:
            yield f"the file contains {_names(more)}, which the config does not ask for"

    def _shapes(
        self, layer: int, mine: Mapping[str, str], width: int, problems: list[str]
    ) -> dict[str, tuple[int, ...]]:
        """Return the expected shapes by key. Missing and superfluous tensors are added to
        `problems`."""
        reduction = self.reductions.get(str(layer), self.reductions.get("default"))
        if reduction is None:
            problems.append(
                f"reduction_factor has neither a number for layer {layer} nor a default"
            )
            reduction = 1.0
        inner = max(1, int(width // reduction))
        shapes: dict[str, tuple[int, ...]] = dict(
            zip(_PARAMETERS, ((inner, width), (inner,), (width, inner), (width,)), strict=True)
        )
        if isinstance(self.strength, str):
            shapes[_SCALING] = (1,) if self.strength == "learned" else (width,)
        missing = sorted(shapes.keys() - mine.keys())
        if missing:
            beside = shown(next(iter(mine.values())))
            problems.append(f"the file has {beside} without {some(missing)}")
        if _SCALING in mine and _SCALING not in shapes:
            problems.append(f"{shown(mine[_SCALING])}: the config's scaling is {self.strength}")
        return {mine[one]: shape for one, shape in shapes.items() if one in mine}


def _names(places: list[tuple[int, str]]) -> str:
    return some(f"{place} in layer {layer}" for layer, place in places)


def _root(layout: BaseLayout, sites: Sites) -> str:
    return f"{layout.body}.{sites.layers}." if layout.body else f"{sites.layers}."


def _sorted(
    file: TensorFile, layout: BaseLayout, sites: Sites, problems: list[str]
) -> dict[tuple[int, str], dict[str, str]]:
    """Return the keys by layer and position, then by parameter."""
    root = _root(layout, sites)
    # An adapter of a model without a head does not name the body.
    pattern = re.compile(
        rf"(?:{re.escape(layout.body)}\.)?{re.escape(sites.layers)}\.(?P<layer>0|[1-9][0-9]{{0,5}})\."
        rf"(?P<place>{_ATTENTION}|{_OUTPUT})\.adapters\.(?P<name>[^.]+)\."
        rf"(?P<parameter>{'|'.join(map(re.escape, (*_PARAMETERS, _SCALING)))})",
        re.ASCII,
    )
    found: dict[tuple[int, str], dict[str, str]] = {}
    names: set[str] = set()
    unknown: dict[int, None] = {}
    for key, entry in file.entries.items():
        if entry.dtype not in DTYPES:
            problems.append(
                f"{shown(key)} is {entry.dtype}; adapters are served in {', '.join(DTYPES)}"
            )
        match = pattern.fullmatch(key)
        if match is None:
            problems.append(
                f"{shown(key)}: unexpected key; expected {root}<layer>.{_OUTPUT}.adapters.<name>."
                f"{_PARAMETERS[0]} or similar"
            )
            continue
        layer = int(match["layer"])
        names.add(match["name"])
        if layer >= layout.num_layers:
            unknown[layer] = None
            continue
        mine = found.setdefault((layer, match["place"]), {})
        twin = mine.setdefault(match["parameter"], key)
        if twin != key:
            problems.append(f"{shown(key)} and {shown(twin)} name the same tensor")
    if len(names) > 1:
        problems.append(f"the keys name more than one adapter: {some(sorted(names))}")
    if unknown:
        problems.append(
            f"the file has layers {some(map(str, unknown))}; the base {layout.name} has "
            f"{layout.num_layers}, numbered from 0"
        )
    if not file.entries:
        problems.append("the file contains no tensors")
    return found


def is_adapterhub(config: Mapping[str, Any]) -> bool:
    """Return whether a config without a `peft_type` comes from AdapterHub's library."""
    version = config.get("version")
    return isinstance(config.get("config"), dict) or (
        isinstance(version, str) and version.startswith("adapters.")
    )


def read_bottleneck(fields: Fields, name: str) -> BottleneckSpec | None:
    base_model = fields.take("model_name", check.name, None)
    fields.take("model_class", _causal, None)
    is_old = fields.raw("version") is None
    own = fields.inside("config")
    fields.refuse_the_rest(_ABOUT, {})
    if own is None:
        fields.problems.append(f"config is {shown(fields.raw('config'))}: it must be an object")
        return None
    architecture = own.raw("architecture")
    if architecture is not None:
        fields.problems.append(
            f"AdapterHub's adapters of the architecture {shown(architecture)} are not served; its "
            "bottleneck adapters are"
        )
        return None
    for key in ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity"):
        if own.raw(key) is None:
            own.problems.append(f"{key} is missing from config")
    in_attention = own.take("mh_adapter", check.boolean, False)
    in_output = own.take("output_adapter", check.boolean, False)
    places = (_ATTENTION,) * in_attention + (_OUTPUT,) * in_output
    if not places and not own.complains_of("mh_adapter") and not own.complains_of("output_adapter"):
        own.problems.append(
            "mh_adapter and output_adapter are both false: the adapter changes nothing"
        )
    activation = own.take("non_linearity", lambda value: _activation(value, is_old), "relu")
    reductions = own.take("reduction_factor", _reductions, {"default": 16.0})
    strength = own.take("scaling", _strength, 1.0)
    leave_out = own.take("leave_out", check.indices, None) or frozenset()
    reads = _reads(own)
    own.refuse_the_rest(_HARMLESS, _NOT_SERVED)
    return BottleneckSpec(
        name, base_model, "CAUSAL_LM", places, activation, reads, reductions, strength, leave_out
    )


def _reads(own: Fields) -> Reads:
    """Follow the library's `pre_forward` and `post_forward` for models without a norm after a
    layer."""
    is_parallel = own.take("is_parallel", check.boolean, False)
    before = own.take("original_ln_before", check.boolean, False)
    after = own.take("original_ln_after", check.boolean, True)
    around = own.take("residual_before_ln", check.boolean, True)
    if is_parallel:
        wanted, reads = True, Reads.RESIDUAL
    elif before:
        # Not `around`: the adapter's own residual already contains the stream.
        wanted, reads = around, Reads.SUM
    else:
        wanted, reads = True, Reads.ANSWER
    if after != wanted:
        own.problems.append(
            f"original_ln_after is {after} with original_ln_before {before}, residual_before_ln "
            f"{around} and is_parallel {is_parallel}: the residual stream would be "
            f"{'added twice' if after else 'lost'}, which is not served"
        )
    return reads


def _causal(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise Wrong("must be the name of a class")
    if not value.endswith(("ForCausalLM", "LMHeadModel", "Model")):
        raise Wrong("its head is not served; adapters of causal language models are")
    return value


def _activation(value: Any, is_old: bool) -> str:
    name = value.lower() if isinstance(value, str) else ""
    if is_old:
        name = _RENAMED.get(name, name)
    if name not in ACTIVATIONS:
        raise Wrong(f"served are {', '.join(ACTIVATIONS)}")
    return name


def _reductions(value: Any) -> dict[str, float]:
    given = value if isinstance(value, dict) else {"default": value}
    for one in given.values():
        if isinstance(one, bool) or not isinstance(one, int | float) or not 1e-6 <= one <= 1e6:
            raise Wrong("must be a number above zero, or an object with such a number per layer")
    return {str(layer): float(one) for layer, one in given.items()}


def _strength(value: Any) -> float | str:
    if value in ("learned", "channel"):
        return str(value)
    if isinstance(value, str):
        raise Wrong("must be a number, 'learned' or 'channel'")
    return check.alpha(value)


METHODS: Final = (
    Method(
        "BOTTLENECK",
        "AdapterHub bottleneck",
        read_bottleneck,
        (f"{_ATTENTION}.", f"{_OUTPUT}."),
        Gate("adapter_up"),
        recognizes=is_adapterhub,
    ),
)
