"""Aliases, splits and the retention of versions, over the real server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from lorry.settings import Settings

VERSIONS = 4


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> Iterator[Live]:
    with serve(settings_for(tmp_path_factory.mktemp("home"), api_key="s3cret")) as one:
        yield one


@pytest.fixture
def legal(shared: Live, archives: Callable[[int], Path]) -> Live:
    """With `legal` in four versions and `other` in one."""
    for record in shared.http.get("/adapters").json()["adapters"]:
        assert shared.http.delete(f"/adapters/{record['name']}").status_code == 204
    for seed in range(1, VERSIONS + 1):
        assert shared.upload("legal", archives(seed), replace="true").status_code == 201
    assert shared.upload("other", archives(9)).status_code == 201
    return shared


def patch(live: Live, path: str = "legal", status: int = 200, **change: Any) -> dict[str, Any]:
    answer = live.http.patch(f"/adapters/{path}", json=change)
    assert answer.status_code == status, answer.text
    return answer.json()  # type: ignore[no-any-return]


def used(live: Live, adapter: Any = "legal", **more: Any) -> tuple[str, int]:
    (one,) = live.generate("Ahoy", adapter=adapter, **more)["adapters"]
    return one["name"], one["version"]


ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "Ahoy", "adapter": "NAME"}),
    ("/generate", {"inputs": "Ahoy", "adapter": {"name": "NAME", "scale": 1}}),
    ("/generate", {"inputs": "Ahoy", "parameters": {"adapter_id": "NAME"}}),
    ("/v1/completions", {"prompt": "Ahoy", "model": "NAME", "max_tokens": 1}),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "adapter": "NAME", "max_tokens": 1}),
    ("/v1/chat/completions", {"model": "NAME", "max_tokens": 1}),
    ("/v1/messages", {"model": "NAME", "max_tokens": 1}),
    ("/v1/responses", {"model": "NAME", "input": "a", "max_output_tokens": 1}),
]


def ask(live: Live, path: str, body: dict[str, Any], name: str) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for key, value in body.items():
        if isinstance(value, dict):
            value = {k: name if v == "NAME" else v for k, v in value.items()}
        filled[key] = name if value == "NAME" else value
    if "chat" in path or "messages" in path:
        filled["messages"] = [{"role": "user", "content": "Ahoy"}]
    answer = live.http.post(path, json=filled)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("alias", ["legal-prod", "legal@prod", "org/prod:1"])
def test_an_alias_is_a_name_everywhere(legal: Live, alias: str) -> None:
    record = patch(legal, aliases={alias: 2})
    assert (record["version"], record["aliases"]) == (4, {alias: 2})
    expected = legal.generate("Ahoy", adapter="legal@2")
    assert legal.generate("Ahoy", adapter=alias) == expected
    for path, body in ROUTES:
        told = ask(legal, path, body, alias)["adapters"]
        assert {(one["name"], one["version"]) for one in told} == {("legal", 2)}, path
    both = legal.generate("Ahoy", adapter=[alias, {"name": "other", "scale": 0.5}])["adapters"]
    assert [(one["name"], one["version"]) for one in both] == [("legal", 2), ("other", 1)]
    card = legal.http.get(f"/v1/models/{alias}").json()
    assert (card["id"], card["root"]) == (alias, record["versions"][1]["digest"])
    assert card in legal.http.get("/v1/models").json()["data"]
    shown = legal.http.get(f"/adapters/{alias}")
    assert shown.headers["etag"] == f'"{card["root"]}"'
    seen = shown.json()
    assert (seen["name"], seen["alias"], seen["version"]) == ("legal", alias, 2)
    same = legal.http.get("/adapters/legal/content", params={"version": 2})
    assert legal.http.get(f"/adapters/{alias}/content").content == same.content
    parts = {"ids": [alias, "other"], "weights": [1, 1]}
    merged = legal.generate("Ahoy", parameters={"merged_adapters": parts})["adapters"]
    assert merged[0]["of"][0]["version"] == 2


def test_an_alias_moves_and_goes_and_is_never_the_base(legal: Live) -> None:
    patch(legal, aliases={"prod": 2, "stage": 3})
    moved = patch(legal, "prod", version=3)
    assert (moved["alias"], moved["version"], moved["aliases"]) == (
        "prod",
        3,
        {"prod": 3, "stage": 3},
    )
    assert used(legal, "prod") == ("legal", 3)
    # Compare and swap, by the digest of what the alias meant.
    digests = [one["digest"] for one in moved["versions"]]
    for digest, status in ((digests[1], 412), (digests[2], 200)):
        headers = {"if-match": f'"{digest}"'}
        answer = legal.http.patch("/adapters/prod", json={"version": 4}, headers=headers)
        assert answer.status_code == status, answer.text
    assert legal.http.delete("/adapters/prod").status_code == 204
    for path, body in ROUTES[:1]:
        answer = legal.http.post(path, json={**body, "adapter": "prod"})
        assert answer.status_code == 404, answer.text
    model = {"model": "prod", "prompt": "Ahoy"}
    refused(legal.http.post("/v1/completions", json=model), 404, "model_not_found")
    assert used(legal, "stage") == ("legal", 3)
    assert legal.http.delete("/adapters/legal").status_code == 204
    answer = legal.http.post("/generate", json={"inputs": "x", "adapter": "stage"})
    assert answer.status_code == 404


def test_aliases_change_together_or_not_at_all(legal: Live) -> None:
    patch(legal, aliases={"prod": 2, "stage": 3})
    patch(legal, status=404, aliases={"prod": 3, "stage": 99})
    patch(legal, status=409, aliases={"prod": 3, "other": 1}, scale=0.5)
    record = legal.http.get("/adapters/legal").json()
    assert (record["aliases"], record["scale"]) == ({"prod": 2, "stage": 3}, 1.0)
    record = patch(legal, aliases={"prod": None, "stage": 4, "canary": {"3": 1, "4": 3}})
    assert record["aliases"] == {"canary": {"3": 1, "4": 3}, "stage": 4}


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"aliases": {"other": 1}}, 409, "'other' is taken"),
        ({"aliases": {"legal": 1}}, 409, "'legal' is taken"),
        ({"aliases": {"tiny": 1}}, 422, "base model"),
        ({"aliases": {"a b": 1}}, 422, "not an adapter name"),
        ({"aliases": {"legal@7": 1}}, 422, "not digits alone"),
        ({"aliases": {"other@prod": 1}}, 422, "legal@LABEL"),
        ({"aliases": {"prod": 9}}, 404, "no version 9"),
        ({"aliases": {"gone": None}}, 404, "no alias 'gone'"),
        ({"aliases": {"prod": "2"}}, 422, ""),
        ({"aliases": {"prod": {}}}, 422, "from 1 to 16"),
        ({"split": {"1": 0}}, 422, "from 1 to 1000000"),
        ({"split": {"1": -1, "2": 1}}, 422, "from 1 to 1000000"),
        ({"split": {"1": 0.5}}, 422, ""),
        ({"split": {"x": 1}}, 422, ""),
        ({"split": {"1": 1, "9": 1}}, 404, "no version 9"),
        ({"split": {"1": 1, "2": 1}, "version": 3}, 422, "not in the split"),
        ({"keep_versions": 1}, 422, "from 2"),
        ({"keep_days": -1}, 422, "from 0"),
        ({"keep_versions": "all"}, 422, ""),
    ],
)
def test_what_is_refused_changes_nothing(
    legal: Live, change: dict[str, Any], status: int, says: str
) -> None:
    before = legal.http.get("/adapters/legal").json()
    answer = legal.http.patch("/adapters/legal", json=change)
    assert answer.status_code == status, answer.text
    assert says in answer.text
    assert legal.http.get("/adapters/legal").json() == before


def test_an_alias_is_no_adapter(legal: Live, archives: Callable[[int], Path]) -> None:
    patch(legal, aliases={"prod": 2})
    refused(legal.upload("prod", archives(5)), 409, "adapter_conflict")
    with archives(5).open("rb") as file:
        put = legal.http.put("/adapters/prod", files={"file": ("a.zip", file)})
    refused(put, 409, "adapter_conflict")
    refused(legal.http.patch("/adapters/prod", json={"scale": 0.5}), 422, "invalid_selection")
    refused(legal.http.delete("/adapters/prod?version=2"), 409, "adapter_conflict")
    answer = legal.http.post("/generate", json={"inputs": "x", "adapter": "prod@2"})
    assert answer.status_code == 404
    assert "legal@2" in answer.json()["error"]
    # A version that a name means stays.
    refused(legal.http.delete("/adapters/legal?version=2"), 409, "adapter_conflict")
    assert legal.http.delete("/adapters/legal?version=1").status_code == 204


def test_an_alias_of_a_disabled_adapter(legal: Live) -> None:
    patch(legal, aliases={"prod": 2}, enabled=False)
    answer = legal.http.post("/generate", json={"inputs": "x", "adapter": "prod"})
    assert answer.status_code == 409
    assert "prod" not in {one["id"] for one in legal.http.get("/v1/models").json()["data"]}


def test_a_trial_is_consistent_for_a_user_or_a_seed(legal: Live) -> None:
    record = patch(legal, split={"3": 1, "4": 1})
    assert (record["version"], record["split"]) == (4, {"3": 1, "4": 1})
    by_user = {}
    for user in map(str, range(12)):
        seen = {
            used(legal, user=user),
            used(legal, user=user),
            used(legal, user=user, parameters={"seed": 3}),
        }
        body = {"model": "legal", "prompt": ["a", "b"], "n": 2, "max_tokens": 1, "user": user}
        for path, extra in (("/v1/completions", {}), ("/v1/chat/completions", {})):
            told = (
                ask(legal, path, {**body, **extra}, "legal")
                if "chat" not in path
                else ask(legal, path, {"model": "legal", "max_tokens": 1, "user": user}, "legal")
            )
            seen |= {(one["name"], one["version"]) for one in told["adapters"]}
        messages = {"model": "legal", "max_tokens": 1, "metadata": {"user_id": user}}
        told = ask(legal, "/v1/messages", messages, "legal")["adapters"]
        seen |= {(one["name"], one["version"]) for one in told}
        assert len(seen) == 1
        by_user[user] = seen.pop()
    assert {version for _, version in by_user.values()} == {3, 4}
    by_seed = {seed: used(legal, parameters={"seed": seed}) for seed in range(12)}
    assert by_seed == {seed: used(legal, parameters={"seed": seed}) for seed in range(12)}
    assert {version for _, version in by_seed.values()} == {3, 4}
    # Without either, each request draws.
    assert len({used(legal) for _ in range(40)}) == 2
    # Whoever got the new version keeps it as its share grows.
    patch(legal, split={"3": 1, "4": 9})
    for user, (_, version) in by_user.items():
        assert version == 3 or used(legal, user=user) == ("legal", 4)


def test_a_trial_is_told_and_counted_by_version(legal: Live) -> None:
    def counted(version: int) -> float:
        labels = f'adapter="legal",finished_reason="length",version="{version}"'
        name = f"lorry_adapter_requests_total{{{labels}}}"
        lines = legal.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    patch(legal, split={"1": 1, "2": 1})
    body = {"parameters": {"max_new_tokens": 1, "ignore_eos_token": True}}
    told = Counter(used(legal, user=str(index), **body)[1] for index in range(20))
    assert told.keys() == {1, 2}
    assert {version: counted(version) for version in told} == told


def test_promotion_and_withdrawal_are_one_call(legal: Live) -> None:
    patch(legal, version=3)
    record = patch(legal, split={"3": 9, "4": 1})
    assert record["version"] == 3
    record = patch(legal, split={})
    assert (record["version"], record["split"]) == (3, {})
    assert {used(legal) for _ in range(20)} == {("legal", 3)}
    patch(legal, split={"3": 9, "4": 1})
    record = patch(legal, version=4)
    assert (record["version"], record["split"]) == (4, {})
    assert {used(legal) for _ in range(20)} == {("legal", 4)}
    # And of an alias.
    patch(legal, aliases={"prod": {"1": 9, "2": 1}})
    assert {used(legal, "prod")[1] for _ in range(60)} == {1, 2}
    assert patch(legal, "prod", split={})["version"] == 1
    assert patch(legal, "prod", split={"1": 1, "2": 1})["split"] == {"1": 1, "2": 1}
    assert patch(legal, "prod", version=2)["aliases"] == {"prod": 2}
    assert used(legal) == ("legal", 4)


def test_a_push_during_a_trial_does_not_end_it(
    legal: Live, archives: Callable[[int], Path]
) -> None:
    patch(legal, split={"3": 9, "4": 1})
    answer = legal.upload("legal", archives(6), replace="true")
    record = answer.json()
    assert (answer.status_code, record["version"], record["split"]) == (201, 3, {"3": 9, "4": 1})
    assert record["versions"][-1]["version"] == 5
    # The same files again are nothing new.
    assert legal.upload("legal", archives(6), replace="true").status_code == 200
    assert {used(legal)[1] for _ in range(60)} == {3, 4}
    assert patch(legal, version=5)["version"] == 5


def test_versions_that_are_not_kept_go_with_their_metrics(
    legal: Live, archives: Callable[[int], Path]
) -> None:
    for version in (1, 2, 3):
        used(legal, f"legal@{version}")
    assert 'adapter="legal",version="3"' in legal.http.get("/metrics").text
    patch(legal, aliases={"old": 1})
    record = patch(legal, keep_versions=2)
    assert [one["version"] for one in record["versions"]] == [1, 3, 4]
    legal.upload("legal", archives(7), replace="true")
    record = legal.http.get("/adapters/legal").json()
    assert [one["version"] for one in record["versions"]] == [1, 4, 5]
    metrics = legal.http.get("/metrics").text
    assert 'adapter="legal",version="3"' not in metrics
    assert 'adapter="legal",version="1"' in metrics
    answer = legal.http.post("/generate", json={"inputs": "x", "adapter": "legal@3"})
    assert answer.status_code == 404
    assert patch(legal, keep_versions="default")["keep_versions"] is None


def key_of(live: Live, **body: Any) -> dict[str, str]:
    made = live.http.post("/keys", json=body).json()["key"]
    return {"authorization": f"Bearer {made}"}


def test_what_a_key_may_see_and_name(legal: Live) -> None:
    patch(legal, aliases={"prod": 2, "legal-prod": 3, "legal@x": 1})
    key = key_of(legal, name="team", scopes=["generate", "upload"], adapters=["legal*"])
    shown = legal.http.get("/adapters/legal", headers=key).json()
    assert shown["aliases"] == {"legal-prod": 3, "legal@x": 1}
    ids = {one["id"] for one in legal.http.get("/v1/models", headers=key).json()["data"]}
    assert ids == {"tiny", "legal", "legal-prod", "legal@x"}
    for name, status in (("prod", 404), ("legal-prod", 200), ("legal@x", 200)):
        body = {"inputs": "x", "adapter": name, "parameters": {"max_new_tokens": 1}}
        assert legal.http.post("/generate", json=body, headers=key).status_code == status
        assert legal.http.get(f"/adapters/{name}", headers=key).status_code == status
    for change in ({"prod": 1}, {"prod": None}, {"free": 1}):
        answer = legal.http.patch("/adapters/legal", json={"aliases": change}, headers=key)
        assert answer.status_code == 403, answer.text
    foreign = key_of(legal, name="other", scopes=["upload"], adapters=["legal-prod", "other"])
    answer = legal.http.get("/adapters/legal-prod", headers=foreign)
    assert answer.status_code == 404
    asker = key_of(legal, name="asker", scopes=["generate"])
    answer = legal.http.patch("/adapters/prod", json={"version": 1}, headers=asker)
    assert answer.status_code == 403
    for name in ("team", "other", "asker"):
        assert legal.http.delete(f"/keys/{name}").status_code == 204


def test_changes_are_in_the_audit(legal: Live) -> None:
    patch(legal, aliases={"prod": 2}, split={"3": 9, "4": 1}, keep_versions=10)
    legal.http.delete("/adapters/prod")
    entries = legal.http.get("/audit?adapter=legal&limit=2").json()["entries"]
    assert entries[0]["detail"] == {"aliases": [{"prod": {"2": 1}}, {}]}
    assert entries[1]["action"] == "changed"
    assert entries[1]["detail"] == {
        "version": [4, 3],
        "aliases": [{}, {"prod": {"2": 1}}],
        "split": [{}, {"3": 9, "4": 1}],
        "keep_versions": [None, 10],
    }
