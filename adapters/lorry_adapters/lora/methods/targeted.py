"""Shared by methods that target modules and save tensors for each of them.

A method defines the tensors of a module, their shapes, and their effect. The rest is shared:
sorting the keys, finding parts of the base itself beside them, comparing the config's targets
with the modules in the file, and reporting every problem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Final

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.keys import LINEAR, PREFIX, sort_keys, unexpected
from lorry_adapters.lora.methods.own_parts import OwnPartsFields, read_own_parts
from lorry_adapters.lora.methods.pairs import disagreements, not_linear
from lorry_adapters.lora.parts import FileContents, Parts, SpecBase
from lorry_adapters.lora.patterns import Budget
from lorry_adapters.lora.problems import shown
from lorry_adapters.lora.target_modules import Targets
from lorry_adapters.lora.tensor_file import PLACES, TensorFile

MAX_DENSE: Final = 4 << 30
"""The largest size in bytes, in fp32, of an adapter that is served as full weights."""


def too_large(peft_type: str, modules: Iterable[BaseModule]) -> Iterator[str]:
    """Yield a problem if full weights for `modules` are too large."""
    size = sum(module.in_features * module.out_features * 4 for module in modules)
    if size > MAX_DENSE:
        yield (
            f"{peft_type} is served as full weights, which would take {size >> 20} MiB for these "
            f"modules; at most {MAX_DENSE >> 20} are allowed. Train it as a LoRA, or convert it to "
            "one with peft's convert_to_lora"
        )


@dataclass(frozen=True, slots=True)
class FoundModule:
    """One module in the file: the base's module, and the keys of its tensors."""

    module: BaseModule
    keys: Mapping[str, str]
    """By parameter."""


@dataclass(frozen=True, slots=True)
class TargetedSpec(SpecBase, ABC):
    """The config of such a method."""

    targets: Targets
    own: OwnPartsFields

    parameters: ClassVar[tuple[str, ...]]
    """The parameters of every module, as `sort_keys` takes them."""
    optional: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[tuple[str, ...]] = ()
    """The parameters that contain integers: indices into a weight."""
    kinds: ClassVar[tuple[ModuleKind, ...]] = LINEAR

    def claims(self, key: str) -> bool:
        """Return whether a tensor belongs to the adapter as a whole and not to a module."""
        return False

    @abstractmethod
    def check(
        self, file: TensorFile, found: FoundModule, budget: Budget, problems: list[str]
    ) -> int:
        """Return the rank of the resulting pair, or 0 if there is none. May raise
        InvalidAdapter."""

    def check_shared(
        self,
        file: TensorFile,
        found: Sequence[FoundModule],
        shared: Sequence[str],
        problems: list[str],
    ) -> None:
        """Check the tensors of the whole adapter. `shared` are the keys that were claimed."""

    @abstractmethod
    def read(
        self, file: TensorFile, found: Sequence[FoundModule], shared: Sequence[str], parts: Parts
    ) -> None:
        """Add the effects of everything that `check` accepted to `parts`."""

    def contents(
        self, file: TensorFile, layout: BaseLayout, problems: list[str], *, sound: bool = True
    ) -> FileContents:
        every = (*self.parameters, *self.optional)
        keys = sort_keys(file, layout, every, problems, places=self.places)
        shared = [key for key in keys.rest if self.claims(key)]
        rest = [key for key in keys.rest if not self.claims(key)]
        own = read_own_parts(self.own, self.targets, file, layout, rest, problems)
        problems.extend(unexpected(own.unknown, f"{PREFIX}<module>.{' or .'.join(every)}"))
        found = [FoundModule(layout.modules[name], mine) for name, mine in keys.modules.items()]
        ranks: dict[str, int] = {}
        budget = Budget()
        with told(problems):
            whole = [one for one in found if self._is_whole(file, one, problems)]
            for one in whole:
                rank = self.check(file, one, budget, problems)
                ranks |= {one.module.name: rank} if rank else {}
            self.check_shared(file, whole, shared, problems)
        if sound:
            with told(problems):
                problems.extend(
                    disagreements(
                        self.targets,
                        layout,
                        budget,
                        keys.modules,
                        kinds=self.kinds,
                        refused=not_linear,
                    )
                )

        def read() -> Parts:
            parts = Parts()
            self.read(file, found, shared, parts)
            own.read(parts)
            return parts

        return FileContents(
            modules=(*keys.modules, *own.modules), read=read, ranks=ranks, labels=own.labels
        )

    def _is_whole(self, file: TensorFile, found: FoundModule, problems: list[str]) -> bool:
        missing = [one for one in self.parameters if one not in found.keys]
        if found.module.kind not in self.kinds:
            problems.append(not_linear(found.module))
            return False
        if missing:
            problems.append(f"{shown(found.module.name)} has no {' and no '.join(missing)}")
            return False
        # `sort_keys` has reported tensors with other dtypes.
        return all(
            file.entries[found.keys[one]].dtype in PLACES
            for one in self.places
            if one in found.keys
        )


@contextmanager
def told(problems: list[str]) -> Iterator[None]:
    """Add an InvalidAdapter raised inside to `problems`."""
    try:
        yield
    except InvalidAdapter as error:
        problems.extend(error.problems)
