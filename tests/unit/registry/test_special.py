"""Adapters that are more or less than a LoRA: what the registry keeps of them, and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorry_adapters.errors import InvalidScale, InvalidSelection
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, save_prompt, upload
from support.peft_adapters import edit_config


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(
        tmp_path / "home", layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=1 << 20
    )
    yield opened
    opened.close()


@pytest.fixture
def prompt(tmp_path: Path) -> Callable[[int], Path]:
    return lambda seed: save_prompt(tmp_path / "files" / f"prompt{seed}", seed)


@pytest.fixture
def lora(tmp_path: Path) -> Callable[[int], Path]:
    return lambda seed: save_adapter(tmp_path / "files" / f"lora{seed}", seed)


Files = Callable[[int], Path]


def test_what_a_request_must_know_is_in_its_lease(registry: Registry, prompt: Files) -> None:
    record, _ = registry.add("brief", upload(prompt(1)))
    assert record.current.virtual_tokens == 3
    assert not record.current.scalable
    lease = registry.acquire([AdapterChoice("brief")])
    (ref,) = lease.refs
    assert (ref.virtual_tokens, ref.is_prefix, ref.invocation) == (3, False, ())
    assert registry.weights(ref.digest).prompt is not None
    lease.release()


def test_it_is_known_after_a_restart(tmp_path: Path, prompt: Files, lora: Files) -> None:
    called = lora(1)
    edit_config(called, alora_invocation_tokens=[4, 5])
    options = {"max_rank": 8, "max_upload": 1 << 20, "max_host_bytes": 1 << 20}
    first = Registry(tmp_path / "home", layout(), **options)
    first.add("brief", upload(prompt(1)))
    first.add("called", upload(called))
    first.close()
    again = Registry(tmp_path / "home", layout(), **options)
    lease = again.acquire([AdapterChoice("brief"), AdapterChoice("called")])
    assert [(ref.virtual_tokens, ref.invocation) for ref in lease.refs] == [(3, ()), (0, (4, 5))]
    lease.release()
    again.close()


@pytest.mark.parametrize("scale", [0.5, -1.0, 2.0])
def test_a_prompt_has_no_strength(scale: float, registry: Registry, prompt: Files) -> None:
    registry.add("brief", upload(prompt(1)))
    with pytest.raises(InvalidScale, match=r"'brief'.*PROMPT_TUNING.*scale 1, or at 0") as error:
        registry.acquire([AdapterChoice("brief", scale=scale)])
    assert error.value.param == "scale"
    assert registry.open_leases() == 0
    for whole in (0.0, 1.0):
        registry.acquire([AdapterChoice("brief", scale=whole)]).release()


def test_nor_a_default_one(registry: Registry, prompt: Files, lora: Files) -> None:
    """Refused when it is set, not at every request after that."""
    with pytest.raises(InvalidScale):
        registry.add("brief", upload(prompt(1)), scale=0.5)
    assert registry.records() == ()
    registry.add("brief", upload(prompt(1)), scale=0.0)
    with pytest.raises(InvalidScale):
        registry.patch("brief", scale=0.5)
    registry.patch("brief", scale=1.0)
    registry.add("legal", upload(lora(1)), scale=0.5)
    before = registry.get("legal")
    with pytest.raises(InvalidScale, match="version 2"):
        registry.put("legal", upload(prompt(2)))
    with pytest.raises(InvalidScale, match="version 2"):
        registry.add("legal", upload(prompt(2)), replace=True)
    assert registry.get("legal") == before
    registry.add("legal", upload(prompt(2)), replace=True, scale=1.0)
    registry.patch("legal", version=1, scale=0.5)
    with pytest.raises(InvalidScale, match="version 2"):
        registry.patch("legal", version=2)
    registry.patch("legal", version=2, scale=1.0)


def test_only_one_can_stand_in_front(registry: Registry, prompt: Files, lora: Files) -> None:
    for name, folder in (("brief", prompt(1)), ("kind", prompt(2)), ("legal", lora(1))):
        registry.add(name, upload(folder))
    both = [AdapterChoice("brief"), AdapterChoice("legal"), AdapterChoice("kind")]
    with pytest.raises(InvalidSelection, match="'brief' and 'kind' each put virtual tokens"):
        registry.acquire(both)
    assert registry.open_leases() == 0
    # At scale 0 it is not there.
    both[2] = AdapterChoice("kind", scale=0.0)
    registry.acquire(both).release()


def test_how_many_positions_a_selection_takes(
    registry: Registry, prompt: Files, lora: Files, tmp_path: Path
) -> None:
    registry.add("brief", upload(prompt(1)))
    registry.add("legal", upload(lora(1)))
    longer = save_prompt(tmp_path / "longer", 3, count=7)
    registry.add("brief", upload(longer), replace=True)

    def taken(*choices: AdapterChoice) -> int:
        return registry.virtual_tokens(choices)

    assert taken() == taken(AdapterChoice("legal")) == 0
    assert taken(AdapterChoice("brief"), AdapterChoice("legal")) == 7
    assert taken(AdapterChoice("brief", version=1)) == 3
    assert taken(AdapterChoice("brief", scale=0.0)) == 0
    # Whoever asks for what is not there is told so when the request is accepted.
    assert taken(AdapterChoice("nobody"), AdapterChoice("brief", version=9)) == 0
