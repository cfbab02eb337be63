"""The files around the code: the image, the compose file, the pins, the make targets."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

import lorry
from lorry.api.hosts import Hosts
from lorry.settings import options

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def compose(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "docker" / name).read_text())
    assert isinstance(content, dict)
    return content


def canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_the_version_is_in_two_places_and_the_same() -> None:
    assert pyproject()["project"]["version"] == lorry.__version__


def test_everything_we_ask_for_is_pinned() -> None:
    project = pyproject()["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins), "no local tags"
    assert {canonical(item) for item in wanted} - {"lorry"} <= {canonical(pin) for pin in pins}


# Import names that differ from the distribution's.
DISTRIBUTIONS = {"huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
DISTRIBUTIONS |= {"prometheus_client": "prometheus-client"}


def test_the_code_imports_nothing_that_is_not_asked_for() -> None:
    asked = {canonical(item) for item in pyproject()["project"]["dependencies"]}
    # The last two are FastAPI's and pydantic's own foundations, meant to be imported beside them.
    ours = {"lorry", "lorry_adapters", "starlette", "pydantic_core"} | sys.stdlib_module_names
    # PyTorch's CUDA builds bring it, and only where there is a device is it imported.
    ours |= {"triton"}
    extras = {
        ("ray", ROOT / "server/lorry/scale"),
        ("psycopg", ROOT / "adapters/lorry_adapters/registry/shared"),
    }
    strangers: dict[str, str] = {}
    for file in [
        *(ROOT / "server/lorry").rglob("*.py"),
        *(ROOT / "adapters/lorry_adapters").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                if (top, file.parent) in extras:
                    continue
                if top not in ours and DISTRIBUTIONS.get(top, canonical(top)) not in asked:
                    strangers[top] = str(file.relative_to(ROOT))
    assert strangers == {}


def test_the_image_has_no_lint() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--failure-threshold", "info", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_not_root_and_checks_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    users = re.findall(r"^USER (\S+)", final, re.MULTILINE)
    assert users and not users[-1].startswith(("0", "root"))
    assert "/health" in final
    assert "ARG TORCH_INDEX=" in text


@pytest.mark.parametrize(("index", "compiles"), [("cpu", False), ("cu130", True)])
def test_the_image_for_a_gpu_has_the_compiler_that_triton_calls(index: str, compiles: bool) -> None:
    text = (ROOT / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    choice = re.search(r"case .* esac", final)
    assert choice is not None
    url = f"https://download.pytorch.org/whl/{index}"
    done = subprocess.run(
        ["sh", "-c", f'{choice.group()}; echo "$@"'],
        env={"TORCH_INDEX": url},
        capture_output=True,
        text=True,
        check=True,
    )
    packages = done.stdout.split()
    assert "libgomp1" in packages
    assert ({"gcc", "libc6-dev"} <= set(packages)) is compiles


def test_the_image_copies_only_what_its_context_has() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    copied = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert any(item == source or item.startswith(source + "/") for item in let_in), source


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    text = (ROOT / "docker" / name).read_text()
    assert "lorry" in compose_spec.PyCompose.from_yaml(text).service_names()


def test_compose_keeps_adapters_and_models_and_has_time_to_stop() -> None:
    content = compose("compose.yaml")
    service = content["services"]["lorry"]
    for volume in service["volumes"]:
        name, _, target = volume.partition(":")
        assert name in content["volumes"]
        assert target.startswith("/data")
    assert len(service["volumes"]) == 2
    grace = next(option.default for option in options() if option.name == "shutdown_grace")
    assert int(service["stop_grace_period"].removesuffix("s")) > float(str(grace))
    known = {option.variable for option in options()}
    assert {name for name in service["environment"] if name.startswith("LORRY_")} <= known


def test_prometheus_scrapes_the_service_where_it_listens() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["lorry:8000"]}]
    services = compose("compose.yaml")["services"]
    names = services["lorry"]["environment"]["LORRY_ALLOWED_HOSTS"].split(",")
    assert Hosts(names, bound="0.0.0.0").refusal(job["static_configs"][0]["targets"]) is None


def test_compose_mounts_files_that_are_there() -> None:
    content = compose("compose.yaml")
    found = [
        ROOT / "docker" / volume.partition(":")[0]
        for service in content["services"].values()
        for volume in service["volumes"]
        if volume.partition(":")[0] not in content["volumes"]
    ]
    assert len(found) == 4
    assert all(path.is_dir() and any(path.iterdir()) for path in found)


def test_compose_names_versions_of_other_peoples_images() -> None:
    images = {name: one["image"] for name, one in compose("compose.yaml")["services"].items()}
    assert images.pop("lorry") == "lorry"
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images.values())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["serve", "test", "lint", "clients", "bench", "fmt", "clean"])
def test_make_targets_are_there_and_told_of(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"make {target} " in (ROOT / "Makefile").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_names_what_is_missing_in_one_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        ["make", "--no-print-directory", "install", "PYTHON=/nowhere/python3.12"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no Python 3.11, 3.12 or 3.13 found as /nowhere/python3.12" in done.stderr


def test_ci_runs_what_the_readme_says() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


CODE = [*(ROOT / "server").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
CODE += [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
CODE += [*(ROOT / "clients").rglob("*.py"), *(ROOT / "server").rglob("*.[ch]")]


def test_no_file_is_past_400_lines() -> None:
    lengths = {str(file.relative_to(ROOT)): file.read_text().count("\n") for file in CODE}
    assert len(lengths) > 500
    assert {name: count for name, count in lengths.items() if count > 400} == {}
