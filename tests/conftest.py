"""Fixtures for everybody: tiny models in folders, adapters for them, built once a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Before transformers or huggingface_hub are imported: no test may reach for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The library's own files must not land in, or be found in, the home of whoever runs the tests.
for _variable in [name for name in os.environ if name.startswith("LORRY_")]:
    del os.environ[_variable]

from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck  # noqa: E402
from hypothesis import settings as hypothesis_settings  # noqa: E402

if TYPE_CHECKING:
    from support.postgres import Postgres

# Before any test is decorated. An example that takes long says something of the machine only.
hypothesis_settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("patient")

if not torch.cuda.is_available():
    # Before Triton is imported, which bitsandbytes does: its kernels are interpreted, on a CPU.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine-process",
        choices=("off", "on", "ray"),
        default="off",
        help="where the engine of the servers in tests/api runs: in the test's process, apart, or, "
        "for the tests that ask nothing but the shared server, as two replicas on Ray",
    )
    parser.addoption(
        "--whole-matrix",
        action="store_true",
        help="every kind of adapter on every base (minutes), not the part that each run takes",
    )
    parser.addoption(
        "--whole-decoders",
        action="store_true",
        help="every decoder class in every form (many minutes), not the part that each run takes",
    )


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tiny matrices: more than one thread only adds waiting, and hides nothing."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model("llama")`: the folder of that family's tiny random model with a tokenizer."""
    from support import tiny

    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            tiny.save_model(family, path)
        return path

    return folder


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, made for so many tokens that an answer of it need not end.

    Its weights are `tiny_model("llama")`'s, and so is what it says.
    """
    from support import tiny
    from support.patience import LONG

    return tiny.save_model("llama", tmp_path_factory.mktemp("long"), max_positions=LONG)


@pytest.fixture(scope="session")
def peft_adapter(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]
) -> Callable[..., Path]:
    """`peft_adapter("llama", "plain", seed=3)`: the folder of a loud PEFT adapter of that kind."""
    from support import peft_adapters

    root = tmp_path_factory.mktemp("adapters")

    def folder(family: str, variant: str, *, seed: int = 0) -> Path:
        path = root / family / f"{variant}-{seed}"
        if not path.exists():
            peft_adapters.save_adapter(family, tiny_model(family), variant, path, seed=seed)
        return path

    return folder


@pytest.fixture(scope="session")
def zip_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Packs an adapter's folder as a zip, ready to upload."""
    from support.peft_adapters import pack

    root = tmp_path_factory.mktemp("archives")
    count = iter(range(1_000_000))

    def archive(folder: Path, members: Sequence[str] | None = None) -> Path:
        return pack(folder, root / f"{next(count)}.zip", members)

    return archive


@pytest.fixture(scope="session")
def archives(
    peft_adapter: Callable[..., Path], zip_of: Callable[..., Path]
) -> Callable[[int], Path]:
    """`archives(seed)`: a zip of an adapter for the tiny Llama."""
    made: dict[int, Path] = {}

    def archive(seed: int) -> Path:
        if seed not in made:
            made[seed] = zip_of(peft_adapter("llama", "plain", seed=seed))
        return made[seed]

    return archive


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server of its own, running."""
    from support.postgres import Postgres, why_not

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def catalog_url(postgres: Postgres) -> Iterator[str]:
    """An empty database."""
    with postgres.database() as url:
        yield url
