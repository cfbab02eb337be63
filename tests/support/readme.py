"""The parts of README.md and docs/ that are made from the code: they cannot go stale.

`make docs` writes them; `tests/unit/test_docs.py` fails where they are not what the code says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from lorry.access.access_control import AccessControl
from lorry.api.app import Services, create_app
from lorry.api.chat_schema import ChatBody
from lorry.api.completions_schema import CompletionsBody
from lorry.api.fields import markdown_table as markdown_table_of_fields
from lorry.core import Base, EngineStats
from lorry.metrics import Metrics
from lorry.scrape import EngineNumbers, Sources
from lorry.settings import Settings
from lorry_adapters.registry.host_cache import HostCacheStats
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.store_counts import StoreCounts
from support import limits, scopes, speed
from support.settings_table import markdown_table
from support.tokenizer import EOS, VOCAB_SIZE, build_tokenizer

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

_SECTION = r"(<!-- {name}: begin -->\n)(.*?)(<!-- {name}: end -->)"


PAGES = {
    "samples": README,
    "speed": README,
    "endpoints": DOCS / "api.md",
    "fields": DOCS / "api.md",
    "settings": DOCS / "settings.md",
    "scopes": DOCS / "access.md",
    "metrics": DOCS / "metrics.md",
    "limits-of-requests": DOCS / "limits.md",
    "limits-of-adapters": DOCS / "limits.md",
}
"""Where each section stands."""


def sections() -> dict[str, Callable[[], str]]:
    return {
        "samples": samples,
        "speed": speed.table,
        "endpoints": endpoints,
        "fields": fields,
        "settings": markdown_table,
        "scopes": scopes.table,
        "metrics": metrics,
        "limits-of-requests": limits.requests,
        "limits-of-adapters": limits.adapters,
    }


def written(name: str) -> str:
    """What its page says between the marks of `name`."""
    page = PAGES[name]
    found = re.search(_SECTION.format(name=name), page.read_text(), re.DOTALL)
    assert found is not None, f"{page} has no section {name}"
    return found.group(2)


def shell_blocks(text: str) -> list[str]:
    """The fenced blocks without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if not language]


def samples() -> str:
    content = json.loads((ROOT / "adapters/samples/samples.json").read_text())
    lines = ["| Adapter | |", "|---|---|"]
    for item in content["samples"]:
        lines.append(f"| `{item['name']}` | {item['description']} |")
    return "\n".join(lines) + "\n"


def endpoints() -> str:
    """One row a route, in the order of OpenAPI, whose summaries these are."""
    lines = ["| Call | |", "|---|---|"]
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            lines.append(f"| `{method.upper()} {path}` | {operation['summary']} |")
    return "\n".join(lines) + "\n"


def openapi() -> dict[str, Any]:
    """The document of an application that could answer nothing: it is only described here."""
    registry = SimpleNamespace(
        host_cache_stats=None, records=None, in_host_cache=None, why_broken=None
    )
    services = Services(
        client=cast(Any, None),
        registry=cast(Any, registry),
        tokenizer=build_tokenizer(add_bos=False),
        settings=Settings(),
        metrics=Metrics(CollectorRegistry(), base_name="base"),
        base=Base(
            name="base",
            other_names=(),
            repository=None,
            source="base",
            quantization="none",
            eos_token_ids=frozenset({EOS}),
            max_model_len=128,
            vocab_size=VOCAB_SIZE,
            about={"parameters": 1},
        ),
        access=AccessControl(None),
    )
    return create_app(services).openapi()


def fields() -> str:
    """Without those that chat and completions both serve."""
    served = ChatBody.model_fields.keys() & CompletionsBody.model_fields.keys()
    return markdown_table_of_fields(served)


def metrics() -> str:
    lines = ["| Metric | Labels | |", "|---|---|---|"]
    for family in families():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {shown} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def families() -> list[Metric]:
    """Everything a scrape can show, sorted by name, with a sample of each."""
    collectors = CollectorRegistry()
    metrics = Metrics(collectors, base_name="base")
    metrics.watch(
        Sources(
            engines=lambda: [
                EngineNumbers(EngineStats(), HostCacheStats(0, 0, 0, 0, 0, 0), lambda digest: True)
            ],
            records=lambda: (_record(),),
            why_broken=lambda digest: None,
            ready=lambda: True,
            max_num_seqs=1,
            max_queue=1,
            catalog_answers=lambda: True,
            store=StoreCounts().now,
        )
    )
    meter = metrics.accepted((), prompt_tokens=1, max_tokens=1)
    meter.token(1.0)
    meter.token(1.0)
    meter.finish("stop")
    metrics.refused("code")
    return sorted(collectors.collect(), key=lambda family: family.name)


def _record() -> AdapterRecord:
    now = datetime.now(UTC)
    version = VersionRecord(1, "sha256:0", "LORA", 1, ("q_proj",), 1, 1, None, now)
    return AdapterRecord("name", True, 1.0, False, "", version, (version,), now, now)


def main() -> None:
    for name, make in sections().items():
        body, page = make(), PAGES[name]
        text = re.sub(
            _SECTION.format(name=name),
            lambda found, body=body: found.group(1) + body + found.group(3),
            page.read_text(),
            flags=re.DOTALL,
        )
        page.write_text(text)


if __name__ == "__main__":
    main()
