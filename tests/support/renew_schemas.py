"""Renews tests/kubernetes/schemas: `PYTHONPATH=tests python -m support.renew_schemas`.

Kubernetes' own kinds come with the package kubernetes-validate. Those of others are in their
projects' CustomResourceDefinitions, which are too large to keep whole: what is kept is the
schema, as it is, without descriptions and status. `versions.json` says what is taken: repository,
tag, file, licence. To renew one, write its new tag and run this, which needs git and a network.
It writes the SHA-256 of every kept file, which a test compares.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "kubernetes/schemas"
VERSIONS = FOLDER / "versions.json"


def main() -> None:
    sources = json.loads(VERSIONS.read_text())
    for source in sources:
        content = json.dumps(_schema(source), indent=1, sort_keys=True) + "\n"
        (FOLDER / f"{source['name']}.json").write_text(content)
        source["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    VERSIONS.write_text(json.dumps(sources, indent=2) + "\n")


def _schema(source: dict[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        clone = ["git", "clone", "--quiet", "--depth", "1", "--no-checkout"]
        clone += ["--filter", "blob:none"]
        clone += ["--branch", source["tag"], source["repository"], folder]
        subprocess.run(clone, check=True)
        show = ["git", "-C", folder, "show", f"HEAD:{source['path']}"]
        text = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    definition = yaml.safe_load(text)
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == source["version"])
    schema = _bare(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    return schema


def _bare(value: Any) -> Any:
    """Without descriptions. A property may be called so, and then is an object."""
    if isinstance(value, dict):
        kept = value.items()
        return {
            key: _bare(one)
            for key, one in kept
            if not (key == "description" and isinstance(one, str))
        }
    return [_bare(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
