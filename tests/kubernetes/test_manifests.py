"""docker/kubernetes: built by kustomize, checked against the published schemas, and compared with
docker/compose.yaml and the server's own settings. No cluster has run them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lorry.api.hosts import Hosts
from lorry.settings import Settings, options

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker/kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
OVERLAYS = ("cpu", "gpu", "replicas")
KUBERNETES = ("1.34", "1.37")
"""The oldest and the newest version that the manifests are for."""

OTHERS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): "podmonitor",
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): "httproute",
    ("inference.networking.k8s.io/v1", "InferencePool"): "inferencepool",
}


@cache
def built(overlay: str) -> list[dict[str, Any]]:
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            break
    else:
        pytest.skip("needs kustomize or kubectl")
    done = subprocess.run(
        [*command, str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def one(overlay: str, kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = (
        document
        for document in built(overlay)
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    )
    return found


def pod(overlay: str) -> dict[str, Any]:
    return one(overlay, "StatefulSet")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def closed(schema: Any) -> Any:
    """No field but those that are named, as a cluster prunes or refuses others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def check(document: dict[str, Any], version: str) -> None:
    """Raises jsonschema.ValidationError."""
    other = OTHERS.get((document["apiVersion"], document["kind"]))
    if other is None:
        kubernetes_validate.validate(document, version, strict=True)
    else:
        schema = closed(json.loads((SCHEMAS / f"{other}.json").read_text()))
        jsonschema.validate(document, schema)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_keeps_to_its_schema(overlay: str, version: str) -> None:
    documents = built(overlay)
    kinds = {document["kind"] for document in documents}
    wanted = {"StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap"}
    more = {"HorizontalPodAutoscaler", "PodMonitor", "InferencePool", "HTTPRoute"}
    assert kinds == wanted | (more if overlay == "replicas" else set())
    for document in documents:
        check(document, version)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("StatefulSet", ("spec", "template", "spec", "containers", 0, "portz"), []),
        ("StatefulSet", ("spec", "replicas"), "two"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "intervall"), "15s"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "interval"), "often"),
        ("HTTPRoute", ("spec", "rules", 0, "matches", 0, "path", "type"), "Prefix"),
        ("HTTPRoute", ("spec", "rulez"), []),
        ("InferencePool", ("spec", "targetPortNumber"), 8000),
        ("InferencePool", ("spec", "targetPorts"), []),
    ],
)
def test_a_mistake_is_found(kind: str, path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(json.dumps(one("replicas", kind)))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(document, KUBERNETES[-1])


def test_the_schemas_are_as_they_were_fetched() -> None:
    sources = json.loads((SCHEMAS / "versions.json").read_text())
    assert {source["name"] for source in sources} == set(OTHERS.values())
    for source in sources:
        content = (SCHEMAS / f"{source['name']}.json").read_bytes()
        assert hashlib.sha256(content).hexdigest() == source["sha256"]
        assert source["licence"] == "Apache-2.0"


def test_selectors_find_the_pods() -> None:
    for overlay in OVERLAYS:
        labels = one(overlay, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
        selectors = [
            one(overlay, "StatefulSet")["spec"]["selector"]["matchLabels"],
            one(overlay, "Service", "lorry")["spec"]["selector"],
            one(overlay, "Service", "lorry-pods")["spec"]["selector"],
            one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        ]
        if overlay == "replicas":
            selectors += [
                one(overlay, kind)["spec"]["selector"]["matchLabels"]
                for kind in ("PodMonitor", "InferencePool")
            ]
        for selector in selectors:
            assert selector and selector.items() <= labels.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_container_has_compose_s_restrictions(overlay: str) -> None:
    """docker/test.sh runs the image under those."""
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["lorry"]
    spec = pod(overlay)
    (container,) = spec["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is compose["read_only"] is True
    assert context["capabilities"] == {"drop": compose["cap_drop"]} == {"drop": ["ALL"]}
    assert "no-new-privileges:true" in compose["security_opt"]
    assert context["allowPrivilegeEscalation"] is False
    assert spec["shareProcessNamespace"] is compose["init"] is True
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(compose["tmpfs"]) <= mounts
    # The cache of models is below /data, where compose has a volume of its own.
    assert mounts == {"/data", "/tmp"}
    user = (ROOT / "Dockerfile").read_text().rpartition("\nUSER ")[2].splitlines()[0]
    own = spec["securityContext"]
    assert f"{own['runAsUser']}:{own['runAsGroup']}" == user
    assert own["fsGroup"] == own["runAsGroup"] and own["runAsNonRoot"] is True
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stop_has_the_time_that_running_requests_have(overlay: str) -> None:
    spec = pod(overlay)
    (container,) = spec["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= before + Settings().shutdown_grace + 10


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_environment_is_settings(overlay: str) -> None:
    (config,) = (document for document in built(overlay) if document["kind"] == "ConfigMap")
    known = {option.variable for option in options()}
    assert config["data"].keys() <= known
    hosts = Hosts(config["data"]["LORRY_ALLOWED_HOSTS"].split(","), bound="0.0.0.0")
    for name in ("lorry:8000", "lorry.team.svc", "lorry.team.svc.cluster.local", "10.0.0.7:8000"):
        assert hosts.refusal([name]) is None
    assert hosts.refusal(["evil.example"]) is not None
    # Keys are in a secret, and only there.
    (container,) = pod(overlay)["containers"]
    assert {"secretRef": {"name": "lorry"}} in container["envFrom"]
    secrets = {option.variable for option in options() if option.secret}
    assert not secrets & config["data"].keys()


def test_the_autoscaler_reads_metrics_that_there_are() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    for metric in one("replicas", "HorizontalPodAutoscaler")["spec"]["metrics"]:
        name = metric["pods"]["metric"]["name"]
        assert f"| `{name.replace('vllm_', 'vllm:', 1)}` |" in text
    assert "replicas" not in one("replicas", "StatefulSet")["spec"]


def test_the_route_and_the_pool_have_the_servers_port() -> None:
    (container,) = pod("replicas")["containers"]
    (port,) = container["ports"]
    assert one("replicas", "InferencePool")["spec"]["targetPorts"] == [
        {"number": port["containerPort"]}
    ]
    pooled, others = one("replicas", "HTTPRoute")["spec"]["rules"]
    assert pooled["backendRefs"][0]["kind"] == "InferencePool"
    service = one("replicas", "Service", others["backendRefs"][0]["name"])
    assert others["backendRefs"][0]["port"] == service["spec"]["ports"][0]["port"]
