"""What a policy hides is not named in errors, even where a hidden adapter has the same content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorry_adapters.errors import AdapterBroken
from lorry_adapters.registry.policy import Policy
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload


class Hiding(Policy):
    """Hides the adapters in `hidden`."""

    def __init__(self) -> None:
        self.hidden: set[str] = set()

    def sees(self, name: str) -> bool:
        return name not in self.hidden


@pytest.fixture
def policy() -> Hiding:
    return Hiding()


@pytest.fixture
def registry(tmp_path: Path, policy: Hiding) -> Iterator[Registry]:
    room = {"max_rank": 8, "max_upload": 1 << 20, "max_host_bytes": 1 << 20}
    opened = Registry(tmp_path / "home", layout(), policy=policy, **room)
    yield opened
    opened.close()


def test_another_owner_of_a_broken_content_is_not_named(
    registry: Registry, policy: Hiding, tmp_path: Path
) -> None:
    files = save_adapter(tmp_path / "files", 1)
    digest = registry.add("mine", upload(files))[0].current.digest
    assert registry.add("secret", upload(files))[0].current.digest == digest
    shown = registry.mark_broken(digest, "it is spoilt")
    assert "'mine'" in str(shown) and "'secret'" in str(shown)
    policy.hidden.add("secret")
    marked = registry.mark_broken(digest, "it is spoilt")
    assert "'mine'" in str(marked) and "secret" not in str(marked)
    with pytest.raises(AdapterBroken, match="'mine'") as error:
        registry.acquire([AdapterChoice("mine")])
    assert "secret" not in str(error.value)
    policy.hidden.add("mine")
    assert f"the adapter {digest}" in str(registry.mark_broken(digest, "it is spoilt"))
