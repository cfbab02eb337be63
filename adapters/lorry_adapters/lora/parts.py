"""What an adapter's file holds, once its keys and shapes are known to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from lorry_adapters.lora.expert_effects import AnyEffect

if TYPE_CHECKING:
    from lorry_adapters.lora.base import BaseLayout
    from lorry_adapters.lora.prompt import VirtualTokens
    from lorry_adapters.lora.tensor_file import TensorFile


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One linear's delta: y += scaling * B(A(x)), in the type it was stored in."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    """The trained strength, alpha/r or alpha/sqrt(r); a request's scale multiplies it."""

    @property
    def nbytes(self) -> int:
        return self.a_RI.nbytes + self.b_OR.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierHead:
    """A classifier's head: what it makes of the last token's hidden state."""

    weight_LH: Tensor
    bias_L: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.weight_LH.nbytes + (0 if self.bias_L is None else self.bias_L.nbytes)


@dataclass(slots=True, eq=False)
class Parts:
    """The tensors, read."""

    pairs: dict[str, LoraPair] = field(default_factory=dict)
    """By the path of the linear."""
    effects: dict[str, list[AnyEffect]] = field(default_factory=dict)
    """All else that it does, by the path of the module."""
    prompt: VirtualTokens | None = None
    score: ClassifierHead | None = None

    def add(self, module: str, effect: AnyEffect) -> None:
        self.effects.setdefault(module, []).append(effect)


@dataclass(frozen=True, slots=True)
class FileContents:
    """A file whose keys and shapes fit the base and the config, or whose problems are told."""

    modules: tuple[str, ...]
    """Paths of what it changes."""
    read: Callable[[], Parts]
    """Only where there were no problems."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """By path, of the pairs that it becomes."""
    virtual_tokens: int = 0
    labels: int = 0
    """Of a classifier."""
    warnings: tuple[str, ...] = ()
    """What is taken, and may be meant otherwise."""


class AdapterSpec(Protocol):
    """An `adapter_config.json`, checked. Each PEFT method has its own (`methods/`)."""

    @property
    def peft_type(self) -> str: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def task_type(self) -> str: ...
    @property
    def invocation(self) -> tuple[int, ...]:
        """aLoRA: token ids from which on the adapter acts; else empty."""
        ...

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        """Match the file's tensors with the base. All that does not fit goes to `problems`.

        Not `sound`: the config had problems, so where the file disagrees with it is not told.
        """
        ...


@dataclass(frozen=True, slots=True)
class SpecBase:
    """What most methods' configs say beside their own fields."""

    peft_type: str
    base_model: str | None
    task_type: str

    @property
    def invocation(self) -> tuple[int, ...]:
        return ()
