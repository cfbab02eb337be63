"""What each route needs, as a table for the docs, and a request to each that a test can send."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lorry.access.api_key import Scope
from lorry.api.route_scopes import METRICS, OPEN, TABLE

SCOPES = ("generate", "upload", "admin")

_CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
_ONE = {"max_new_tokens": 1}


@dataclass(frozen=True)
class Asked:
    """A request to a route, with or without an adapter in it."""

    body: Callable[[str], dict[str, Any] | None] = lambda name: None
    foreign: str = ""
    """What one beyond the key's list gets; empty if the route names none."""
    path: str = ""
    """With `NAME` for the adapter; the route's own if it has no part to fill in."""
    fields: dict[str, str] = field(default_factory=dict)
    """Of a form, beside the files."""


def _spec(**body: Any) -> Asked:
    return Asked(lambda name: {**body, "adapter": name}, "404")


def _model(**body: Any) -> Asked:
    return Asked(lambda name: {**body, "model": name}, "404")


def _named(path: str, body: dict[str, Any] | None = None) -> Asked:
    return Asked(lambda name: body, "404", path)


_STORED = "/v1/responses/resp_0"
_LISTED = "not listed"

ASKED: dict[str, Asked] = {
    "POST /": _spec(inputs="x", parameters=_ONE),
    "POST /generate": _spec(inputs="x", parameters=_ONE),
    "POST /generate_stream": _spec(inputs="x", parameters=_ONE),
    "POST /embed": _spec(inputs="x"),
    "POST /tokenize": _model(prompt="x"),
    "POST /detokenize": _model(tokens=[5]),
    "GET /tokenizer_info": Asked(),
    "POST /v1/completions": _model(prompt="x", max_tokens=1),
    "POST /v1/chat/completions": _model(**_CHAT),
    "POST /v1/responses": _model(input="x", max_output_tokens=1),
    "GET /v1/responses/{response_id}": Asked(path=_STORED),
    "DELETE /v1/responses/{response_id}": Asked(path=_STORED),
    "POST /v1/responses/{response_id}/cancel": Asked(path=f"{_STORED}/cancel"),
    "GET /v1/responses/{response_id}/input_items": Asked(path=f"{_STORED}/input_items"),
    "POST /v1/messages": _model(**_CHAT),
    "POST /v1/messages/count_tokens": _model(messages=_CHAT["messages"]),
    "POST /classify": _spec(inputs="x"),
    "POST /score": _model(text_1="x", text_2="y"),
    "POST /v1/score": _model(text_1="x", text_2="y"),
    "POST /rerank": _model(query="x", documents=["y"]),
    "POST /v1/rerank": _model(query="x", documents=["y"]),
    "POST /v1/embeddings": _model(input="x"),
    "GET /v1/models": Asked(foreign=_LISTED),
    "GET /v1/models/{model:path}": _named("/v1/models/NAME"),
    "GET /adapters": Asked(foreign=_LISTED),
    "POST /adapters": Asked(foreign="403", fields={"replace": "true"}),
    "GET /adapters/{name:adapter}/content": _named("/adapters/NAME/content"),
    "GET /adapters/{name:adapter}": _named("/adapters/NAME"),
    "PUT /adapters/{name:adapter}": Asked(
        foreign="404", path="/adapters/NAME", fields={"name": "NAME"}
    ),
    "PATCH /adapters/{name:adapter}": _named("/adapters/NAME", {"scale": 1}),
    "DELETE /adapters/{name:adapter}": _named("/adapters/NAME"),
    "GET /unclaimed": Asked(),
    "POST /unclaimed": Asked(lambda name: {"digest": "sha256:" + "0" * 64}),
    "POST /v1/load_lora_adapter": Asked(
        lambda name: {"lora_name": name, "lora_path": "ROOT", "load_inplace": True}, "403"
    ),
    "POST /v1/unload_lora_adapter": Asked(lambda name: {"lora_name": name}, "404"),
    "GET /keys": Asked(),
    "POST /keys": Asked(lambda name: {"name": "", "scopes": []}),
    "GET /keys/{name}": Asked(path="/keys/none"),
    "PATCH /keys/{name}": Asked(lambda name: {"description": ""}, path="/keys/none"),
    "DELETE /keys/{name}": Asked(path="/keys/none"),
    "POST /keys/{name}/rotate": Asked(lambda name: {}, path="/keys/none/rotate"),
    "GET /audit": Asked(),
    "GET /health/live": Asked(),
    "GET /health/ready": Asked(),
    "GET /health": Asked(),
    "GET /ping": Asked(),
    "POST /ping": Asked(),
    "GET /version": Asked(),
    "GET /info": Asked(),
    f"GET {METRICS}": Asked(foreign="403"),
}


def permits(route: str, scope: str) -> bool:
    """Whether a key with that scope alone may ask; without a key only what is open."""
    needed = TABLE[route]
    if needed == OPEN:
        return True
    return scope == "admin" or (scope != "" and Scope(scope) in needed)


def table() -> str:
    heads = " | ".join(f"`{scope}`" for scope in SCOPES)
    lines = [f"| Route | no key | {heads} | an adapter beyond the key's list |"]
    lines.append("|---|---|" + "---|" * (len(SCOPES) + 1))
    for route in TABLE:
        cells = ["yes" if permits(route, "") else "401"]
        cells += ["yes" if permits(route, scope) else "403" for scope in SCOPES]
        shown = re.sub(r"\{(\w+):\w+\}", r"{\1}", route)
        lines.append(f"| `{shown}` | {' | '.join(cells)} | {ASKED[route].foreign or '-'} |")
    return "\n".join(lines) + "\n"
