"""The contents of an adapter's file, after its keys and shapes were checked."""

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
    """The delta of one linear, y += scaling * B(A(x)), in the dtype of the file."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    """The trained strength, alpha/r or alpha/sqrt(r); a request's scale multiplies it."""

    @property
    def nbytes(self) -> int:
        return self.a_RI.nbytes + self.b_OR.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierHead:
    """The head of a classifier, applied to the last token's hidden state."""

    weight_LH: Tensor
    bias_L: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.weight_LH.nbytes + (0 if self.bias_L is None else self.bias_L.nbytes)


@dataclass(slots=True, eq=False)
class Parts:
    """The tensors that were read."""

    pairs: dict[str, LoraPair] = field(default_factory=dict)
    """By the path of the linear."""
    effects: dict[str, list[AnyEffect]] = field(default_factory=dict)
    """All other effects, by the path of the module."""
    prompt: VirtualTokens | None = None
    score: ClassifierHead | None = None

    def add(self, module: str, effect: AnyEffect) -> None:
        self.effects.setdefault(module, []).append(effect)


@dataclass(frozen=True, slots=True)
class FileContents:
    """A file whose keys and shapes were checked against the base and the config."""

    modules: tuple[str, ...]
    """Paths of the changed modules."""
    read: Callable[[], Parts]
    """Reads the tensors. Must be called only if there were no problems."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Ranks of its pairs, by path."""
    virtual_tokens: int = 0
    labels: int = 0
    """Number of labels of a classifier."""
    warnings: tuple[str, ...] = ()
    """Notes about things that were accepted but may be mistakes."""


class AdapterSpec(Protocol):
    """A checked `adapter_config.json`. Each PEFT method has its own class (`methods/`)."""

    @property
    def peft_type(self) -> str: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def task_type(self) -> str: ...
    @property
    def invocation(self) -> tuple[int, ...]:
        """The token ids that activate an aLoRA. Empty for all others."""
        ...

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        """Match the file's tensors with the base. Adds everything that does not fit to `problems`.

        If not `sound`, the config had problems, so its disagreements with the file are not
        reported.
        """
        ...


@dataclass(frozen=True, slots=True)
class SpecBase:
    """The fields that most methods' configs share."""

    peft_type: str
    base_model: str | None
    task_type: str

    @property
    def invocation(self) -> tuple[int, ...]:
        return ()
