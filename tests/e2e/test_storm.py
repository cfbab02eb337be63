"""The short form of `make storm`: it goes on until enough was changed and every refusal was met."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.crashes import Scene
from support.storm import blow

CHANGES = 150


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.made(tmp_path_factory.mktemp("scene"))


def test_each_answer_is_the_one_that_the_request_has_alone(scene: Scene, tmp_path: Path) -> None:
    def over(changes: int, statuses: set[int]) -> bool:
        return changes >= CHANGES and statuses >= {200, 404, 409, 422}

    blow(scene, tmp_path, 1, over, rounds=8)
