"""Imports torch, transformers and bitsandbytes without TorchDynamo, Inductor and DTensor.

A server uses none of these. transformers and bitsandbytes import them for a handful of decorators
and type checks: two seconds of processor time at each start, and 100 MiB. transformers also reads
the files of all of its models twice, where once is enough.
"""

from __future__ import annotations

import gc
import importlib
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_DYNAMO = "torch._dynamo"


def _unchanged(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    return _unchanged if function is None else function


_STAND_INS: Mapping[str, Mapping[str, object]] = {
    _DYNAMO: dict.fromkeys(("disable", "assume_constant_result", "allow_in_graph"), _unchanged),
    # Of sizes that are formulas. Sizes are numbers here, and what is asked about them is known.
    "torch.fx.experimental.symbolic_shapes": {
        "expect_true": bool,
        "guard_or_false": bool,
        "guard_or_true": bool,
        "guard_size_oblivious": bool,
        "guarding_hint_or_throw": operator.index,
        "has_guarding_hint": lambda size: True,
        "is_nested_int": lambda size: False,
        "statically_known_true": bool,
        "sym_and": lambda *known: all(known),
        "sym_eq": operator.eq,
        "sym_or": lambda *known: any(known),
    },
    # The class of all formulas.
    "sympy": {"Basic": type("Basic", (), {})},
}


def import_libraries() -> None:
    """Call it before anything else imports transformers or bitsandbytes. Afterwards
    `torch.compile` and `torch._dynamo` are what they always are."""
    import torch

    with without_dynamo():
        _without_distributed(torch)
        _with_models_read_once()
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("transformers.masking_utils")
        compile_, torch.compile = torch.compile, _refuse  # type: ignore[assignment]
        try:
            # It compiles one of its functions as it is imported, and takes the plain one where
            # that fails.
            importlib.import_module("bitsandbytes")
        finally:
            torch.compile = compile_


@contextmanager
def without_dynamo() -> Iterator[None]:
    """For the time, `torch._dynamo` is a package with the decorators that transformers uses, and
    torch for its operations on empty models. They leave functions as they are. The modules of the
    real one can be imported, each alone; whoever asks for anything else gets the real one.

    Nor is sympy imported, which takes half a second. torch imports it to see whether an argument
    of an operation on an empty model is one of its formulas: there is none without TorchDynamo."""
    folder = Path(str(importlib.import_module("torch").__file__)).parent
    packages = {_DYNAMO: [str(folder / "_dynamo")]}
    made = [
        _StandIn(name, has, packages.get(name))
        for name, has in _STAND_INS.items()
        if name not in sys.modules
    ]
    for one in made:
        sys.modules[one.__name__] = one
    try:
        yield
    finally:
        for one in made:
            one.forget()


class _StandIn(ModuleType):
    """Has what `has` says. Anything else is the real module's, which is imported then and takes
    its place."""

    def __init__(self, name: str, has: Mapping[str, object], path: list[str] | None) -> None:
        super().__init__(name)
        vars(self).update(has)
        if path is not None:
            self.__path__ = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.forget()
        return getattr(importlib.import_module(self.__name__), name)

    def forget(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        parent, _, name = self.__name__.rpartition(".")
        owner = sys.modules.get(parent)
        if owner is not None and vars(owner).get(name) is self:
            delattr(owner, name)


def _without_distributed(torch: ModuleType) -> None:
    """transformers looks once whether torch can be distributed, and believes it from then on."""
    checks = importlib.import_module("transformers.utils.import_utils")
    available, torch.distributed.is_available = torch.distributed.is_available, bool
    try:
        checks.is_torch_distributed_available()
    finally:
        torch.distributed.is_available = available


@contextmanager
def collector_paused() -> Iterator[None]:
    """For the time of the imports. Python's collector would look through everything again and
    again, and find next to no garbage: a fifth of the time. Nor does it look at what was imported
    from then on, until `gc.unfreeze`."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def _with_models_read_once() -> None:
    """Import `transformers.models`. It wants to know what each of its files defines, which
    `transformers` has found out before, with names that begin with the package's."""
    checks: Any = importlib.import_module("transformers.utils.import_utils")
    define = checks.define_import_structure
    # The same call again, which is answered from its cache.
    known = define(Path(checks.__file__).parent.parent / "models", prefix="models")

    def read(_path: str) -> Mapping[frozenset[str], Mapping[str, set[str]]]:
        return {
            backends: {name[7:]: found for name, found in files.items() if name[:7] == "models."}
            for backends, files in known.items()
        }

    checks.define_import_structure = read
    try:
        importlib.import_module("transformers.models")
    finally:
        checks.define_import_structure = define


def _refuse(*arguments: object, **options: object) -> object:
    raise RuntimeError("not while bitsandbytes is imported")
