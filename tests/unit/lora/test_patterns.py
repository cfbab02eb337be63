"""Strangers' regular expressions: Python's meaning, without Python's backtracking."""

from __future__ import annotations

import re

import pytest

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.patterns import Budget, Pattern, SuffixRules

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.self_attn.o_proj",
    "model.layers.1.mlp.down_proj",
    "transformer.h.3.attn.c_attn",
    "lm_head",
    "model.embed_tokens",
    "model.LAYERS.2.Q_PROJ",
]

# As they stand in adapters of the wild: written by trainers and by hand.
SERVED = [
    r".*q_proj",
    r".*\.(q_proj|v_proj)",
    r"model\.layers\.\d+\.self_attn\.[qkvo]_proj",
    r"(?:.*?(?:language|text|layers).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    r".*?(?:k_proj|v_proj|q_proj|out_proj|o_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj)))",
    r"^(?!.*(?:mlp|embed)).*(?:proj|c_attn)$",
    r".*(?<!down)_proj",
    r".*(?<=attn\.)q_proj",
    r"(?i).*\.layers\.\d\..*q_PROJ",
    r"(?x) .* \. q_proj   # the queries",
    r"[^.]+",
    r".*\.[^\d\W]+\.\w+",
    r"model\.layers\.(?:[0-9]|1[0-5])\..*",
    r"(model\.)?(?P<x>lm_head|embed_tokens)",
    r".*\Bproj",
    r"(?:a|)*(?:b?)+?.*head",
    r".{7}",
    r".{3,7}?",
    r"(?s:.)*\Z",
    r"",
    r"(model)\..*\1|(?>m.*)\.q_proj|[a-z]++\.h\..*",
]


@pytest.mark.parametrize("source", SERVED)
def test_means_what_python_means(source: str) -> None:
    pattern = Pattern(source, where="target_modules")
    found = [name for name in NAMES if pattern.matches(name, Budget())]
    assert found == [name for name in NAMES if re.fullmatch(source, name)]


@pytest.mark.parametrize(
    "source",
    [
        ".*(a|b)q?_proj",
        "^model.*q_proj",
        "q.proj",
        "attn|q_proj",
        "self.attn.q_proj",
        "self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model",
        ".",
    ],
)
def test_a_suffix_starts_at_a_dot(source: str) -> None:
    rules = SuffixRules({source: 7}, where="rank_pattern")
    names = [*NAMES, "q_proj", "xq_proj", "qxproj", "a.q.proj", "a.b"]
    found = [name for name in names if rules.find(name, Budget()) == 7]
    assert found == [name for name in names if re.match(rf"(.*\.)?({source})$", name)]


def test_the_first_of_the_rules_wins() -> None:
    name = "model.layers.0.self_attn.q_proj"
    sources = ["k_proj", "attn.q_proj", "q.proj", ".*q_proj", "q_proj", "self_attn.q_proj"]
    assert SuffixRules({s: s for s in sources}, where="r").find(name, Budget()) == "q.proj"
    sources.reverse()
    assert SuffixRules({s: s for s in sources}, where="r").find(name, Budget()) == sources[0]
    sources.insert(0, ".*layers.*")
    assert SuffixRules({s: s for s in sources}, where="r").find(name, Budget()) == ".*layers.*"


def test_a_rule_for_every_module_of_a_large_model_is_looked_up() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(90) for j in range(99)]
    rules = SuffixRules({name: index for index, name in enumerate(names)}, where="rank_pattern")
    # No expression is matched: there is no time for any.
    assert [rules.find(name, Budget(0.0)) for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    "source",
    [
        r"(a+)+$",
        r"(.*)*(.*)*(.*)*x",
        r"(?:(?:a*)*)*b",
        r"(a|aa)+$",
        r"(.*.*.*.*.*.*.*.*.*.*.*.*)x",
        r"(?=(.*a){9}.*x)" * 3,
        "(a?" * 90 + ")" * 90,
        "((((((((((a{0,99}){0,99}){0,99}){0,99}){0,99}){0,99}){0,99}){0,99}){0,99})b)",
    ],
)
def test_never_hangs(source: str) -> None:
    # Python's own engine needs years for most of these.
    pattern = Pattern(source, where="target_modules")
    budget = Budget(0.2)
    try:
        for _ in range(50):
            assert not pattern.matches("a" * 119 + "!", budget)
    except InvalidAdapter as error:
        assert "too long" in error.problems[0]


def test_time_is_shared_by_all_of_an_adapter_s_expressions() -> None:
    budget = Budget(0.1)
    hostile, plain = (Pattern(one, where="target_modules") for one in ("(a|aa)+$", "lm_head"))
    assert plain.matches("lm_head", budget)
    for pattern, name in ((hostile, "a" * 119 + "!"), (plain, "lm_head")):
        with pytest.raises(InvalidAdapter, match="too long"):
            pattern.matches(name, budget)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (r"(a)?(?(1)b|c)", "conditional"),
        (r"(a", "unterminated"),
        (r"(?<=a+)b", "fixed-width"),
        ("[\u0400-\u0500]+", "ASCII"),
        (r"[\u0400-\u0500]+", "ASCII"),
        (r"(?i)[\x00-\U0010ffff]", "ASCII"),
        # What `regex` would read otherwise than `re`, or unfold.
        ("a{e<=1}", "does not begin a count"),
        ("q_proj{,}", "does not begin a count"),
        ("[a[:alpha:]]", "nested set"),
        ("((?(1)a|b))*", "conditional"),
        ("(?:a{1000}){1000}", "more than 1000 times"),
        (r"(?V1)[a--b]", "nested set"),
        (r"\p{L}+", "does not begin a count"),
        (r"(?<n>a)", "unknown extension"),
        (r"a{9999999999999999999}", "more than 1000 times"),
        ("(" * 1000 + ")" * 1000, "nested"),
        ("a" * 5000 + "*", "5001 characters"),
        ("[[a]*", "nested set"),
        ("[a||b]*", "nested set"),
    ],
)
def test_refused_by_name(source: str, said: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        Pattern(source, where="target_modules")
    (problem,) = caught.value.problems
    assert problem.startswith("target_modules: ")
    assert said in problem
    assert len(problem) < 400
