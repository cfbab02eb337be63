"""What a model does before its layers, after them and in them: `ModelDescription`, or why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorry.model.base_loader import LoadedModel
from lorry.model.compiled.description import ModelDescription, NormDescription, RopeDescription
from lorry.model.compiled.formulas import called, factor, kind_of, norm_of, same
from lorry.model.compiled.pack import BLOCK
from lorry.model.compiled.survey import LayerSurvey, survey_layer
from lorry.model.compiled.survey_attention import attended_of
from lorry.model.compiled.witness import LayerRun, ModelRun, RopeCall, Unknown, flat, watch
from lorry.model.compiled.witness_padded import watch_padded
from lorry.model.kv_cache import Shapes
from lorry.model.padded import UNSUITED

FEW = 64
"""Tokens of a vocabulary."""

MOST_OFFSET = 4
"""Rows of a table of positions before that of position 0."""


def describe(loaded: LoadedModel, shapes: Shapes, longest: int) -> ModelDescription:
    """Of a model that attends by our attention, or pads its rows. `shapes`: what its layers
    store; `longest`: tokens of a sequence at most.

    Raises:
        Unknown: the compiled step cannot run it; the message says why.
    """
    try:
        return _describe(loaded, shapes, longest)
    except torch.OutOfMemoryError:
        raise
    except UNSUITED as error:
        raise Unknown(f"it is made in an unknown way ({error})") from error


def _describe(loaded: LoadedModel, shapes: Shapes, longest: int) -> ModelDescription:
    padded = any(isinstance(layer, int) for layer in shapes)
    numbers = [*_numbers(vars(loaded.config.get_text_config()))]
    layers: list[LayerSurvey] = []

    def look(layer: LayerRun, ropes: Sequence[RopeCall]) -> None:
        if padded:
            layer.attended.append(attended_of(layer, ropes))
        layers.append(survey_layer(loaded.model, layer, ropes, numbers))

    run = watch_padded(loaded, shapes, look) if padded else watch(loaded, shapes, longest, look)
    if len(layers) != len(run.layers):
        raise Unknown("its layers do not run one after the other")
    for before, after in zip(run.layers, run.layers[1:], strict=False):
        if before.y_TH is None or after.came_TH is None or not same(before.y_TH, after.came_TH):
            raise Unknown("something happens between its layers")
    used = {one.rope.key: one.rope for one in layers if one.rope is not None}
    # Some models ask for them in the order of a set.
    order = sorted(used)
    for rope in used.values():
        _require_static(rope, longest)
    embedding, factors, embedding_norm, positions = _begin(loaded, run)
    norm, head, logit_factor, logit_cap = _end(loaded, run, numbers)
    first = _alike(layers)
    description = ModelDescription(
        layers=tuple(
            replace(one.layer, rope=None if one.rope is None else order.index(one.rope.key))
            for one in layers
        ),
        embedding=embedding,
        embedding_factors=factors,
        embedding_norm=embedding_norm,
        positions=positions,
        norm=norm,
        head=head,
        logit_factor=logit_factor,
        logit_cap=logit_cap,
        ropes=tuple(_described(used[key]) for key in order),
        rotated=max(one.rotated for one in layers),
        rotation=next((one.rotation for one in layers if one.rotation), "halves"),
        activation=first.activation,
        gated=first.gated,
        hidden=_width(run),
        heads=first.heads,
        kv_heads=first.kv_heads,
        head_size=first.head_size,
        inner=max(one.layer.inner_size for one in layers),
        vocab=int(loaded.model.get_input_embeddings().weight.shape[0]),
        longest=longest,
    )
    inner = {layer.inner_size for layer in description.layers}
    inner |= {layer.mixture.inner for layer in description.layers if layer.mixture}
    sizes = (description.hidden, description.head_size, *sorted(inner))
    if any(size % BLOCK for size in sizes):
        raise Unknown(f"a width of {sizes} is not a multiple of {BLOCK}")
    return description


def _width(run: ModelRun) -> int:
    x_TH = run.layers[0].x_TH
    return 0 if x_TH is None else x_TH.shape[1]


def _numbers(values: dict[str, object]) -> Iterator[float]:
    for value in values.values():
        if isinstance(value, int | float) and not isinstance(value, bool) and value:
            yield float(value)
            yield 1 / float(value)


def _alike(layers: Sequence[LayerSurvey]) -> LayerSurvey:
    first = layers[0]
    for one in layers:
        for name in ("activation", "gated", "heads", "kv_heads", "head_size"):
            if getattr(one, name) != getattr(first, name):
                raise Unknown(f"its layers differ in their {name.replace('_', ' ')}")
    turning = {(one.rotated, one.rotation) for one in layers if one.rotation is not None}
    if len(turning) > 1:
        raise Unknown("its layers differ in how heads are rotated")
    return first


# ---- angles


def _described(rope: RopeCall) -> RopeDescription:
    return RopeDescription(rope.path, rope.more, rope.keywords, kind_of(rope.cos_TR))


def _require_static(rope: RopeCall, longest: int) -> None:
    """Raises Unknown where angles depend on how long a sequence is."""
    described = _described(rope)
    with torch.inference_mode():
        answers = [
            called(rope.module, described, torch.tensor([ids]))
            for ids in ([1, 2], [1, 2, longest - 1], [1, 2])
        ]
    first, *others = answers
    for other in others:
        if any(not torch.equal(a[0, :2], b[0, :2]) for a, b in zip(first, other, strict=True)):
            raise Unknown("its angles depend on the length of the sequence")


# ---- before the layers


def _begin(
    loaded: LoadedModel, run: ModelRun
) -> tuple[str, tuple[float, float], NormDescription | None, tuple[str, int] | None]:
    """The embedding, its two factors, its norm, and the table of learned positions."""
    module = loaded.model.get_input_embeddings()
    call = next((call for call in run.outside if call.module is module), None)
    came_TH = run.layers[0].came_TH
    if call is None or came_TH is None:
        raise Unknown("its embeddings are made in an unknown way")
    rows_TH = module.weight[run.ids_T].float()
    within = factor(flat(call.y), rows_TH)
    if within is None:
        raise Unknown("its embeddings are made in an unknown way")
    outside = factor(came_TH, flat(call.y))
    if outside is not None:
        return call.path, (within, outside), None, None
    norm = next(_norms_between(run, flat(call.y), came_TH), None)
    if norm is not None:
        return call.path, (within, 1.0), norm, None
    for other in run.outside:
        table_PH = getattr(other.module, "weight", None)
        if not isinstance(other.module, nn.Embedding) or other is call or table_PH is None:
            continue
        for first in range(MOST_OFFSET + 1):
            places_T = run.positions_T + first
            if int(places_T.max()) >= len(table_PH) or not same(flat(other.y), table_PH[places_T]):
                continue
            if flat(call.y).shape == came_TH.shape and same(
                came_TH, flat(call.y) + table_PH[places_T]
            ):
                return call.path, (within, 1.0), None, (other.path, first)
    raise Unknown("something is done to its embeddings")


# ---- after the layers


def _end(
    loaded: LoadedModel, run: ModelRun, numbers: Sequence[float]
) -> tuple[NormDescription | None, str, float, float | None]:
    """The last norm, the head, and the factor and the cap of its answers."""
    module = loaded.model.get_output_embeddings()
    call = next((call for call in run.outside if call.module is module), None)
    y_TH, logits_TV = run.layers[-1].y_TH, run.logits_TV
    if call is None or y_TH is None or logits_TV is None:
        raise Unknown("its head is not a linear")
    if call.y.shape[-1] != len(loaded.model.get_input_embeddings().weight):
        raise Unknown("its head knows other tokens than its embedding")
    norm = None
    if not same(flat(call.x), y_TH):
        norm = next(_norms_between(run, y_TH, flat(call.x)), None)
        if norm is None:
            raise Unknown("its head reads what no known norm makes")
    answers_TV = flat(call.y)
    scale = factor(logits_TV, answers_TV, numbers)
    if scale is not None:
        return norm, call.path, scale, None
    # A few of them first: there are many pairs of numbers.
    few_TF, capped_TF = answers_TV[:, :FEW], logits_TV[:, :FEW]
    for cap in (number for number in numbers if number > 1):
        for scale in (1.0, *numbers):
            if same(capped_TF, _capped(few_TF, scale, cap)) and same(
                logits_TV, _capped(answers_TV, scale, cap)
            ):
                return norm, call.path, scale, cap
    raise Unknown("something is done to its logits")


def _capped(answers_TV: Tensor, scale: float, cap: float) -> Tensor:
    return cap * torch.tanh(answers_TV * scale / cap)


def _norms_between(run: ModelRun, x_TH: Tensor, y_TH: Tensor) -> Iterator[NormDescription]:
    for call in run.outside:
        if call.x.shape[-1] == call.y.shape[-1] and same(call.x, x_TH) and same(call.y, y_TH):
            found = norm_of(call.path, call.module, (x_TH.shape[1],))
            if found is not None:
                yield found
