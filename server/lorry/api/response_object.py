"""The response object of `/v1/responses`, at every stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lorry.api.hosted_tools import is_hosted
from lorry.api.response_items import Named
from lorry.api.response_output import Event, Output
from lorry.api.responses_schema import ResponsesBody
from lorry.core import SamplingParams

PREFIX = "resp_"


class ResponseObject:
    """One response; `output` grows while it is generated."""

    def __init__(
        self,
        key: str,
        body: ResponsesBody,
        model: str,
        names: Mapping[str, Named],
        params: SamplingParams,
    ) -> None:
        """`key` is its id without the prefix; `names` are chat's names of functions in
        namespaces."""
        self.output = Output(key, names)
        self.view: dict[str, Any] = {
            "id": PREFIX + key,
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "background": bool(body.background),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [tool for tool in body.tools or () if not is_hosted(tool)],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user if isinstance(body.user, str) else None,
            "adapters": [],
        }

    def begin(self, adapters: list[dict[str, Any]]) -> None:
        self.view["adapters"] = adapters

    def grow(self, choice: dict[str, Any]) -> list[Event]:
        """Add the choice of a chat's chunk and return its events."""
        events = self.output.push(choice["delta"], choice.get("logprobs"))
        reason = choice.get("finish_reason")
        if reason is not None:
            events += self.output.finish(reason)
            cut = reason == "length"
            self.view["status"] = "incomplete" if cut else "completed"
            self.view["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        return events

    def end(self, usage: dict[str, Any]) -> None:
        """`usage` is chat's."""
        said, thought = usage["prompt_tokens_details"], usage["completion_tokens_details"]
        self.view |= {
            "completed_at": int(time.time()),
            "output": self.output.items,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {
                    "cached_tokens": said["cached_tokens"],
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": thought["reasoning_tokens"]},
                "total_tokens": usage["total_tokens"],
            },
        }

    def complete(self, answer: Mapping[str, Any]) -> None:
        """Add chat's complete answer."""
        self.begin(answer["adapters"])
        self.grow(_as_chunk(answer["choices"][0]))
        self.end(answer["usage"])

    def cancel(self) -> None:
        self.output.break_off()
        self.view |= {"status": "cancelled", "output": self.output.items}

    def fail(self, message: str) -> None:
        self.output.break_off()
        self.view |= {
            "status": "failed",
            "output": self.output.items,
            "store": False,
            "error": {"code": "server_error", "message": message},
        }


def _as_chunk(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a complete answer's choice to a chunk's."""
    message = dict(choice["message"])
    calls = message.get("tool_calls") or ()
    message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    return {**choice, "delta": message}
