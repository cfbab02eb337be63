"""Who imports whom in `lorry.model`: a ladder, with the paths on top."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

ROOM = "lorry.model"


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Imports inside functions count, and so do those for annotations alone."""
    return grimp.build_graph("lorry", cache_dir=None)


def imports_of(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    modules = {name for name in graph.modules if name == ROOM or name.startswith(f"{ROOM}.")}
    return {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}


def test_there_is_no_cycle(graph: grimp.ImportGraph) -> None:
    try:
        TopologicalSorter(imports_of(graph)).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' -> '.join(error.args[1])}")


def test_a_cycle_would_be_found(graph: grimp.ImportGraph) -> None:
    imports = imports_of(graph)
    imports[f"{ROOM}.packed"].add(f"{ROOM}.paths")
    with pytest.raises(CycleError):
        TopologicalSorter(imports).prepare()


def test_the_compiled_step_knows_nothing_that_knows_it(graph: grimp.ImportGraph) -> None:
    compiled = {f"{ROOM}.compiled", *graph.find_descendants(f"{ROOM}.compiled")}
    for name, imported in imports_of(graph).items():
        if name not in compiled and imported & compiled:
            assert not any(graph.direct_import_exists(importer=n, imported=name) for n in compiled)


def test_the_paths_are_put_together_in_one_place(graph: grimp.ImportGraph) -> None:
    assert not any(f"{ROOM}.paths" in imported for imported in imports_of(graph).values())
