"""What one forward pass hands from module to module.

Layers are given random activations in place of the last layer's answers, attention answers at
random, and so does the head: every number that is compared later is of a good size, however
extreme the model's own are. No name is looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorry.model.attention import attending
from lorry.model.base_loader import LoadedModel
from lorry.model.expert_stacks import ExpertStack
from lorry.model.kv_cache import Shapes

LOUD = 30.0
"""The head's answers: far enough from zero that a cap shows."""


class Unknown(Exception):
    """The model does something that the compiled step does not; the message says what."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleCall:
    """A module, and what it made of what."""

    path: str
    module: nn.Module
    x: Tensor
    y: Tensor
    inputs: tuple[Tensor, ...] = ()
    """All tensors of its input; x is the first."""

    @property
    def is_linear(self) -> bool:
        return is_linear(self.module)


@dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """What reached attention, and what it answered."""

    q_QTD: Tensor
    k_HTD: Tensor
    v_HTD: Tensor
    out_TO: Tensor
    scale: float
    softcap: float | None
    slopes: tuple[float, ...] | None = None
    """Of ALiBi, by head of the queries."""
    sinks: tuple[float, ...] | None = None
    """By head of the queries."""


@dataclass(frozen=True, slots=True, eq=False)
class RopeCall:
    path: str
    module: nn.Module
    more: tuple[object, ...]
    keywords: Mapping[str, object]
    cos_TR: Tensor
    sin_TR: Tensor

    @property
    def key(self) -> tuple[str, str]:
        """Another one's angles are others."""
        return self.path, repr((self.more, self.keywords))


@dataclass(slots=True, eq=False)
class LayerRun:
    """One layer."""

    path: str
    attention: str | int
    """Its module's path, or where only transformers' own cache is called, the layer's number."""
    came_TH: Tensor | None = None
    """What the layer before handed over, in whose place it got `x_TH`."""
    x_TH: Tensor | None = None
    y_TH: Tensor | None = None
    calls: list[ModuleCall] = field(default_factory=list)
    attended: list[Attended] = field(default_factory=list)
    stored: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values `[H, T, D]`, where attention itself is not seen."""


@dataclass(slots=True, eq=False)
class ModelRun:
    """A whole pass."""

    ids_T: Tensor
    positions_T: Tensor
    layers: list[LayerRun]
    outside: list[ModuleCall] = field(default_factory=list)
    """Modules of no layer."""
    ropes: list[RopeCall] = field(default_factory=list)
    """So far, each once."""
    logits_TV: Tensor | None = None


def is_linear(module: nn.Module) -> bool:
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sized and not isinstance(module, ExpertStack)


def flat(x: Tensor) -> Tensor:
    """`[.., W]` to `[T, W]`."""
    return x.reshape(-1, x.shape[-1])


Look = Callable[[LayerRun, Sequence[RopeCall]], None]
"""Looks at a layer that has run; its calls are let go of then."""


def watch(loaded: LoadedModel, shapes: Shapes, longest: int, look: Look) -> ModelRun:
    """Runs `loaded`, which attends by our attention. `longest`: tokens of a sequence at most.

    Raises:
        Unknown: it has no layers that run one after the other.
    """
    model = loaded.model
    generator = torch.Generator().manual_seed(1)
    paths = {module: path for path, module in model.named_modules()}
    attentions = [paths[layer] for layer in shapes if isinstance(layer, nn.Module)]
    layers = [LayerRun(_layer_of(model, path, len(attentions)), path) for path in attentions]
    count = count_of(shapes)
    # Near ones and far ones: what depends on how far a position is shows.
    positions_T = torch.linspace(0, longest - 1, count).long()
    vocab = int(model.get_input_embeddings().weight.shape[0])
    ids_T = torch.randint(0, vocab, (count,), generator=generator)
    run = ModelRun(ids_T, positions_T, layers)
    observer = _Observer(dict(zip(attentions, layers, strict=True)), paths, generator)
    with ExitStack() as stack:
        for layer in layers:
            seen = partial(look, layer, run.ropes)
            stack.enter_context(watching_layer(model, layer, generator, seen))
        stack.enter_context(watching_rest(model, run, generator))
        stack.enter_context(attending(observer))
        stack.enter_context(torch.inference_mode())
        output = model(
            input_ids=ids_T.unsqueeze(0), position_ids=positions_T.unsqueeze(0), use_cache=False
        )
    run.logits_TV = flat(output.logits)
    return run


def count_of(shapes: Shapes) -> int:
    """Tokens: not as many as there are heads, so that the two are told apart."""
    heads = {shape.heads for shape in shapes.values()}
    return next(count for count in (7, 11, 13, 17, 19) if not any(h % count == 0 for h in heads))


def _layer_of(model: nn.Module, attention: str, count: int) -> str:
    """The path of the layer around the attention at that path."""
    parts = attention.split(".")
    for end in range(len(parts), 0, -1):
        parent = model.get_submodule(".".join(parts[: end - 1]))
        if isinstance(parent, nn.ModuleList) and len(parent) == count:
            return ".".join(parts[:end])
    raise Unknown("its layers do not run one after the other")


class _Observer:
    def __init__(
        self,
        layers: Mapping[str, LayerRun],
        paths: Mapping[nn.Module, str],
        generator: torch.Generator,
    ) -> None:
        self._layers, self._paths, self._generator = layers, paths, generator

    def attend(
        self,
        module: nn.Module,
        q_1QTD: Tensor,
        k_1HTD: Tensor,
        v_1HTD: Tensor,
        scale: float,
        softcap: float | None,
        sink_Q: Tensor | None,
    ) -> Tensor:
        heads, tokens = q_1QTD.shape[1:3]
        out_1TQD = torch.randn(1, tokens, heads, v_1HTD.shape[3], generator=self._generator)
        self._layers[self._paths[module]].attended.append(
            Attended(
                q_1QTD[0].clone(),
                k_1HTD[0].clone(),
                v_1HTD[0].clone(),
                out_1TQD.flatten(2)[0],
                scale,
                softcap,
                sinks=None if sink_Q is None else tuple(sink_Q.float().tolist()),
            )
        )
        return out_1TQD


def _outermost(root: nn.Module, prefix: str, skip: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """The modules below `root`, but for what is below a linear or in `skip`."""
    for name, child in root.named_children():
        path = f"{prefix}{name}"
        if path in skip:
            continue
        yield path, child
        if not is_linear(child):
            yield from _outermost(child, f"{path}.", skip)


@contextmanager
def watching_layer(
    model: nn.Module, layer: LayerRun, generator: torch.Generator, look: Callable[[], None]
) -> Iterator[None]:
    module = model.get_submodule(layer.path)

    def replace(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        args, kwargs = list(args), dict(kwargs)
        place: Any = (args, 0) if args else (kwargs, "hidden_states")
        came = place[0][place[1]]
        x = torch.randn(came.shape, generator=generator)
        layer.came_TH, layer.x_TH = flat(came).clone(), flat(x).clone()
        place[0][place[1]] = x
        return tuple(args), kwargs

    def keep(_module: nn.Module, _args: Any, result: Any) -> None:
        layer.y_TH = flat(result[0] if isinstance(result, tuple) else result).clone()
        look()
        # All layers' would be hundreds of megabytes of a large base.
        layer.calls.clear()
        layer.attended.clear()
        layer.stored.clear()

    handles = [
        module.register_forward_pre_hook(replace, with_kwargs=True),
        module.register_forward_hook(keep),
        *(_noting(path, child, layer.calls) for path, child in _outermost(
            module, f"{layer.path}.", frozenset()
        )),
    ]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noting(path: str, module: nn.Module, calls: list[ModuleCall]) -> Any:
    def note(_module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        y = result[0] if isinstance(result, tuple) and result else result
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            more = tuple(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            inputs = tuple(v.clone() for v in more) if len(more) > 1 else ()
            calls.append(ModuleCall(path, module, x.clone(), y.clone(), inputs))

    return module.register_forward_hook(note, with_kwargs=True)


@contextmanager
def watching_rest(model: Any, run: ModelRun, generator: torch.Generator) -> Iterator[None]:
    head = model.get_output_embeddings()
    inside = frozenset(layer.path for layer in run.layers)

    def note_rope(path: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            if not isinstance(result, tuple) or len(result) != 2:
                return
            if all(isinstance(part, Tensor) and part.ndim == 3 for part in result):
                more = tuple(value for value in args if not isinstance(value, Tensor))
                named = {k: v for k, v in kwargs.items() if not isinstance(v, Tensor)}
                cos_TR, sin_TR = (part[0].clone() for part in result)
                call = RopeCall(path, module, more, named, cos_TR, sin_TR)
                if call.key not in [rope.key for rope in run.ropes]:
                    run.ropes.append(call)

        return note

    def loud(_module: nn.Module, _args: Any, result: Tensor) -> Tensor:
        return LOUD * torch.randn(result.shape, generator=generator)

    handles = [head.register_forward_hook(loud)]
    for path, module in _outermost(model, "", inside):
        handles += [
            _noting(path, module, run.outside),
            module.register_forward_hook(note_rope(path), with_kwargs=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
