"""Mixtures of experts beyond the matrix: adapters from before transformers 5 and before PEFT
0.19.1, sums of adapters on the same experts, and rows that go to other experts than the base's.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from lorry.model import int8
from lorry_adapters.tools.convert import convert
from support import former_experts, peft_made
from support.compiled import in_codes
from support.expert_orders import UNSLOTH, exchange, regroup
from support.fire import alone, together, token_ids
from support.former_experts import FormerAdapter
from support.matrix_bench import Bench, bench
from support.peft_adapters import edit_config, pack
from support.peft_kinds import KINDS
from support.peft_oracle import PeftOracle
from support.server import body

TOLERANCE = 1e-4
LOUD = 0.01
INT8 = (0.006, 0.04) if int8.available() else (0.2, 1.0)
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
PEFT_CONVERTS = ("mixtral", "qwen3_moe")
"""Of Qwen2-MoE it converts the tensors and not the config, and then drops them."""


@pytest.fixture(scope="module", params=FAMILIES)
def lorry(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("experts")
    with bench(tiny_model(request.param), request.param, home) as found:
        yield found


@dataclass(frozen=True)
class Merged:
    """What an adapter means, in the base's own weights; answers as `Made` does."""

    adapter: FormerAdapter
    base: Any

    @property
    def folder(self) -> Path:
        return self.adapter.folder

    def logprobs(self, token_ids: Any, scale: float = 1.0) -> list[float]:
        return peft_made.prompt_logprobs(self.adapter.merged(self.base, scale), token_ids)


def check(lorry: Bench, folder: Path, truth: Any) -> None:
    """Alone, and in one batch with the base, a plain LoRA and itself at half its strength."""
    lorry.upload("this", folder).raise_for_status()
    try:
        alone = lorry.ask(("this", 1.0))
        assert lorry.error(alone, truth) < TOLERANCE
        assert lorry.error(alone, None) > LOUD
        rows = [None, ("this", 1.0), ("plain", 1.0), ("this", 0.5)]
        base, one, plain, half = lorry.ask_together(rows)
        assert lorry.error(base, None) < TOLERANCE, "base"
        assert lorry.error(one, truth) < TOLERANCE, "this"
        assert lorry.error(plain, lorry.plain) < TOLERANCE, "plain"
        assert lorry.error(half, truth, 0.5) < TOLERANCE, "half"
    finally:
        lorry.remove("this")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"only": ".2."},
        {"only": "1", "router": False, "lora_dropout": 0.05},
        {"use_rslora": True},
    ],
    ids=["all", "one expert", "some, no router", "rslora"],
)
def test_linears_of_one_expert_each(lorry: Bench, tmp_path: Path, config: dict[str, Any]) -> None:
    made = former_experts.make(lorry.family, lorry.base, tmp_path / "a", **config)
    if "only" in config:
        # They are targeted by their paths then.
        edit_config(made.folder, target_modules=sorted(made.pairs))
    check(lorry, made.folder, Merged(made, lorry.base))


@pytest.mark.parametrize("lorry", PEFT_CONVERTS, indirect=True, scope="module")
def test_peft_reads_them_so(
    lorry: Bench, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is compared with above is PEFT's own reading, where it has one."""
    made = former_experts.make(lorry.family, lorry.base, tmp_path / "a")
    ids = list(range(40, 80))
    theirs = PeftOracle(tiny_model(lorry.family)).prompt_logprobs([(made.folder, 1.0)], ids)
    assert theirs == pytest.approx(Merged(made, lorry.base).logprobs(ids), abs=TOLERANCE)


def test_a_sum_on_the_same_experts_and_router(
    lorry: Bench, tiny_model: Callable[[str], Path]
) -> None:
    """W + s1 B1 A1 + s2 B2 A2, as PEFT has two active adapters: what each adds to a projection
    meets in the nonlinearity between the two projections."""
    kind = KINDS["target_parameters, router"]
    mades = {f"a{seed}": lorry.make(kind, seed=seed) for seed in (11, 12)}
    oracle = PeftOracle(tiny_model(lorry.family))
    for name, made in mades.items():
        lorry.upload(name, made.folder).raise_for_status()
    first, second = (made.folder for made in mades.values())
    for scales in ((1.0, 1.0), (0.5, -0.7)):
        chosen = [{"name": n, "scale": s} for n, s in zip(mades, scales, strict=True)]
        answer = ask(lorry, chosen)
        ids = [entry["id"] for entry in answer["prefill"] + answer["tokens"]]
        mine = [entry["logprob"] for entry in (answer["prefill"] + answer["tokens"])[1:]]
        both = [(first, scales[0]), (second, scales[1])]
        assert mine == pytest.approx(oracle.prompt_logprobs(both, ids), abs=TOLERANCE)
        for one in both:
            other = oracle.prompt_logprobs([one], ids)
            assert max(abs(a - b) for a, b in zip(mine, other, strict=True)) > LOUD
    for name in mades:
        lorry.remove(name)


def ask(lorry: Bench, adapters: list[dict[str, Any]]) -> dict[str, Any]:
    parameters = {"max_new_tokens": 2, "details": True, "decoder_input_details": True}
    body = {"inputs": "The gate is open.", "adapter": adapters, "parameters": parameters}
    answer = lorry.live.http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["details"]  # type: ignore[no-any-return]


def test_matrices_in_each_other_s_places(lorry: Bench, tmp_path: Path) -> None:
    """As PEFT 0.18 saved what is the same to PEFT now."""
    made = lorry.make(KINDS["target_parameters"], seed=21)
    older = exchange(Path(shutil.copytree(made.folder, tmp_path / "older")))
    check(lorry, older, made)


def test_columns_expert_by_expert(lorry: Bench, tmp_path: Path) -> None:
    """As Unsloth trained them for some months, and says in a newer config."""
    made = lorry.make(KINDS["target_parameters"], seed=21)
    folder = Path(shutil.copytree(made.folder, tmp_path / "grouped"))
    check(lorry, regroup(folder, lora_B_layout="grouped_by_expert"), made)
    edit_config(folder, lora_B_layout=None, auto_mapping=UNSLOTH)
    answer = lorry.live.upload("doubtful", pack(folder, tmp_path / "doubtful.zip"))
    assert answer.status_code == 201, answer.text
    try:
        (warning,) = answer.json()["warnings"]
        assert "convert FOLDER --experts-grouped" in warning
        assert answer.json()["versions"][0]["warnings"] == [warning]
        assert lorry.live.http.get("/adapters/doubtful").json()["warnings"] == [warning]
    finally:
        lorry.remove("doubtful")
    convert(folder, experts_grouped=True).save(tmp_path / "converted")
    check(lorry, tmp_path / "converted", made)


def test_equal_sides_and_no_version_are_refused(lorry: Bench, tmp_path: Path) -> None:
    made = lorry.make(KINDS["target_parameters"], seed=21)
    folder = tmp_path / "older"
    shutil.copytree(made.folder, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["peft_version"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    answer = lorry.live.upload("this", pack(folder, tmp_path / "a.zip"))
    if lorry.family == "mixtral":
        # Its experts have no square matrix.
        assert answer.status_code == 201
        lorry.remove("this")
    else:
        assert (answer.status_code, "peft_version is missing" in answer.text) == (422, True)


def test_a_router_s_adapter_chooses_other_experts(lorry: Bench, tmp_path: Path) -> None:
    """What the tests above compare holds where it matters: the choice itself changes."""
    kind = KINDS["target_parameters, router"]
    made = lorry.make(kind, seed=1)
    chosen: list[torch.Tensor] = []
    router = made.model.get_submodule("base_model.model.model.layers.0.mlp.gate")
    hook = router.register_forward_hook(lambda m, x, y: chosen.append(y[2].sort().values))
    try:
        ids = list(range(40, 80))
        made.logprobs(ids)
        with made.model.disable_adapter():
            peft_made.prompt_logprobs(made.model, ids)
    finally:
        hook.remove()
    assert (chosen[0] != chosen[1]).any()


def test_a_merge_by_request_says_why_not(lorry: Bench) -> None:
    for seed in (11, 12):
        made = lorry.make(KINDS["target_parameters"], seed=seed)
        lorry.upload(f"a{seed}", made.folder).raise_for_status()
    merged = {"ids": ["a11", "a12"], "weights": [1, 1], "merge_strategy": "linear"}
    body = {"inputs": "The gate", "parameters": {"merged_adapters": merged}}
    answer = lorry.live.http.post("/generate", json=body)
    assert answer.status_code in (400, 422)
    assert "on bare parameters (target_parameters)" in answer.text
    for seed in (11, 12):
        lorry.remove(f"a{seed}")


QUANTIZED = [
    *((family, kind, "torch") for family in FAMILIES for kind in ("nf4", "int8")),
    *((family, kind, "auto") for family in FAMILIES for kind in ("nf4", "fp4", "int8")),
]


@pytest.mark.parametrize(("family", "quantization", "kernels"), QUANTIZED)
def test_on_a_quantized_base(
    family: str,
    quantization: str,
    kernels: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Linears and experts are quantized, and the router is what it was. The deltas are PEFT's over
    the same weights: those of the experts dequantized, the same bitsandbytes linears, or with
    int8 and with our own product the same integers, multiplied exactly; int8 on the compiled step
    reads codes (`support.compiled.in_codes`). Tolerances are those of
    test_matrix_quantized.py."""
    oracle = PeftOracle(tiny_model(family), quantization)
    same_product = quantization != "int8" and kernels == "torch"
    if not same_product:
        oracle.multiply_exactly()
    mean, worst = (0.02, 0.15) if same_product else INT8
    if not same_product and quantization != "int8":
        # Activations of 8 bits (`test_compiled.FLIPPED`), and now and then another expert.
        mean, worst = 0.12, 1.0
    options = {"quantize": quantization, "kernels": kernels}
    bits = in_codes() if quantization == "int8" else nullcontext()
    with bits, bench(tiny_model(family), family, tmp_path, base=oracle.base, **options) as lorry:
        made = lorry.make(KINDS["target_parameters, router"])
        only_experts = {"router": False, "linears": False}
        former = former_experts.make(family, oracle.base, tmp_path / "former", **only_experts)
        # By their paths: a shared expert's linears have the same names.
        edit_config(former.folder, target_modules=sorted(former.pairs))
        lorry.upload("this", made.folder).raise_for_status()
        lorry.upload("former", former.folder).raise_for_status()
        rows = [None, ("this", 1.0), ("plain", 1.0), ("this", 0.5), ("former", 1.0)]
        for name in ("this", "former"):
            lorry.ask((name, 1.0)).raise_for_status()
        truths: list[Any] = [None, made, lorry.plain, made, Merged(former, oracle.base)]
        for row, answer, truth in zip(rows, lorry.ask_together(rows), truths, strict=True):
            if truth is lorry.plain and kernels == "auto":
                # On the compiled step, which rounds it: `test_compiled_mixtures.py`.
                continue
            errors = lorry.errors(answer, truth, 1.0 if row is None else row[1])
            assert (fmean(errors) < mean, max(errors) < worst) == (True, True), (row, errors)
            assert truth is None or fmean(lorry.errors(answer, None)) > 2 * mean


def test_a_row_s_tokens_do_not_depend_on_its_neighbours(lorry: Bench) -> None:
    """Base, experts, routers, plain pairs and sums, each with its own length."""
    kinds = {"experts": "target_parameters", "router": "target_parameters, router"}
    for name, kind in kinds.items():
        lorry.upload(name, lorry.make(KINDS[kind], seed=31).folder).raise_for_status()
    random_ = random.Random(3)
    words = [
        "the",
        "lorry",
        "waited",
        "at",
        "the",
        "gate",
        "and",
        "nobody",
        "knew",
        "what",
        "was",
        "in",
        "it",
        "until",
        "morning",
    ]
    bodies = []
    for _ in range(24):
        names = random_.sample([*kinds, "plain"], random_.choice([0, 1, 1, 2, 3]))
        adapter = [{"name": name, "scale": random_.choice([1.0, 0.5, -1.0])} for name in names]
        prompt = " ".join(random_.choices(words, k=random_.randint(1, 12)))
        bodies.append(body(prompt, adapter or None, random_.randint(4, 12)))
    one_by_one = [token_ids(answer) for answer in alone(lorry.live.url, bodies)]
    assert [token_ids(answer) for answer in together(lorry.live.url, bodies)] == one_by_one
    for name in kinds:
        lorry.remove(name)
