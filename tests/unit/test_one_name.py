"""A name means one thing in the whole project."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import lorry
import lorry_adapters

ADAPTERS, SERVER = (Path(package.__path__[0]) for package in (lorry_adapters, lorry))

MODULES = {
    "env": "Alembic looks for this name beside each list of migrations",
    "errors": "each package has a tree of its own under the name that Python's packages give it",
    "registry": "the room, and the one door to it",
    "kernels": "the adapters' and the base's",
    "methods": "PEFT's here, HTTP's in the API",
    "tools": "the adapters' here, a chat's in the API",
}


def doubled(places: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_modules_have_one_name() -> None:
    places = defaultdict(list)
    for root in (ADAPTERS, SERVER):
        for file in root.rglob("*.py"):
            if file.parent != root or file.name != "__init__.py":
                name = file.parent.name if file.name == "__init__.py" else file.stem
                places[name].append(file)
    assert set(doubled(places)) == set(MODULES)


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for root in (ADAPTERS, SERVER):
        for file in root.rglob("*.py"):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(file)
    assert set(doubled(places)) == set()
