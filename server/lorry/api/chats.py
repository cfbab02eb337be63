"""Renders chats for the model: messages, and tools, through a template."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from lorry.api.calls.choice import notation_of
from lorry.api.calls.hermes import HERMES
from lorry.api.calls.notation import Notation
from lorry.api.chat_template import REFUSALS, ChatTemplate, Messages, TemplateEnding, TemplatePlace
from lorry.api.control_tokens import ControlTokens, unmarked
from lorry.api.own_template import TooMuch
from lorry.api.reasoning import Choice, Thoughts
from lorry.api.tool_prompt import LEAD, ToolPrompt, carried, in_system, speaks_of_tools
from lorry.api.workers import Workers
from lorry.errors import InvalidRequest, UnsupportedParameter


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered chat, and the notation that it asks the model to use."""

    text: str
    """Contains the marks of `control_tokens`."""
    notation: Notation
    """The notation of calls that the model makes by itself."""
    thoughts: Thoughts | None
    """The marks around the model's reasoning, if it reasons."""


_SOURCES = 32
"""Templates whose control tokens are kept: requests may bring their own."""


class Chats:
    """Renders requests' chats. Thread-safe."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        workers: Workers,
        *,
        tool_prompt: ToolPrompt,
        notation: Notation | None,
        thoughts: Choice,
        rendering: Executor | None = None,
        foreign: bool = False,
    ) -> None:
        """`notation`: the base's notation of calls; None for that of its template. `rendering`,
        `foreign`: as in `Prompts.with_tokenizer`; without threads of their own, requests' templates
        are rendered by those for texts."""
        self._tokenizer = tokenizer
        self._workers = workers
        self._tool_prompt = tool_prompt
        self._notation = notation
        self._thoughts = thoughts
        self._rendering = rendering
        self._foreign = foreign
        # An adapter's tokenizer passes them on to transformers' own.
        parameters = inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
        self._reserved = frozenset({*parameters, "messages", "tools"})
        """Names that a template cannot use for variables of its own."""
        self._forms: dict[str, ChatTemplate] = {}
        self._controls: dict[str, ControlTokens] = {}

    def with_tokenizer(
        self, tokenizer: PreTrainedTokenizerFast, rendering: Executor, *, foreign: bool
    ) -> Chats:
        """As in `Prompts.with_tokenizer`."""
        return Chats(
            tokenizer,
            self._workers,
            tool_prompt=self._tool_prompt,
            notation=self._notation,
            thoughts=self._thoughts,
            rendering=rendering,
            foreign=foreign,
        )

    async def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        ending: TemplateEnding = TemplateEnding.TURN,
        tool_prompt: str | None = None,
        parse_special: bool = False,
    ) -> Rendered:
        """Render `messages` through the base's own template or `template`, in the form that it
        takes, ready for the answer. Unless `parse_special`, control tokens in the client's text are
        marked, and `Prompts.encode` reads them as text.

        Raises UnsupportedParameter if the base has no template, or if the template takes no
        documents, or no tools and no other prompt may carry them; InvalidRequest if the template
        refuses the messages.
        """
        with_tools = tools is not None or speaks_of_tools(messages)
        source = template or self._template(tools or ([] if with_tools else None))
        if documents is not None and not _takes("documents", source):
            raise UnsupportedParameter(
                "documents: this base's chat template cannot take documents; leave them out",
                param="documents",
            )
        if not parse_special:
            control = self._control(source)
            try:
                messages, tools = control.marked(messages), control.marked(tools)
                documents, variables = control.marked(documents), control.marked(variables)
            except RecursionError as error:
                raise InvalidRequest(
                    "messages: the messages or their tools are nested too deeply",
                    param="messages",
                ) from error
            tool_prompt = control.marked(tool_prompt)
        for name in variables:
            if name in self._reserved:
                raise InvalidRequest(
                    f"chat_template_kwargs.{name[:80]} is not for the template to set",
                    param="chat_template_kwargs",
                )

        render = partial(
            self._render,
            source,
            documents=None if documents is None else [dict(one) for one in documents],
            add_generation_prompt=ending is TemplateEnding.TURN,
            continue_final_message=ending is TemplateEnding.OPEN,
            **variables,
        )

        def work() -> Rendered:
            form = self._form(source, keep=template is None)
            place = form.tools_place() if tools is not None else TemplatePlace.VARIABLE
            in_words = with_tools and self._in_words(source, tools, place)
            given: Messages = messages
            if in_words:
                lead = tool_prompt or LEAD
                given = carried(messages, tools, in_system=form.takes_system(), lead=lead)
            elif tools is not None and tool_prompt:
                raise UnsupportedParameter(
                    "tool_prompt: this base's chat template describes tools itself; leave it out",
                    param="tool_prompt",
                )
            elif tools is not None and place is TemplatePlace.SYSTEM:
                given = in_system(messages, tools)
            render_with = None if in_words or place is not TemplatePlace.VARIABLE else tools
            fitted = form.fitted(given)
            try:
                text = render(fitted, tools=render_with)
            except REFUSALS:
                if all("content" in message for message in fitted):
                    raise
                # For a template that cannot handle a message without content.
                filled = [{"content": "", **message} for message in fitted]
                text = render(filled, tools=render_with)
            notation = HERMES if in_words else self._notation or notation_of(source)
            return Rendered(text, notation, self._thoughts(source))

        size = sum(len(str(message.get("content") or "")) for message in messages)
        try:
            if self._rendering is not None and (self._foreign or template is not None):
                return await asyncio.get_running_loop().run_in_executor(self._rendering, work)
            return await self._workers.run(size, work)
        except TooMuch as error:
            param = "messages" if template is None else "chat_template"
            raise InvalidRequest(f"{param}: {error.message}", param=param) from error
        except REFUSALS as error:
            whose, param = "the adapter's" if self._foreign else "the base's", "messages"
            if template is not None:
                whose, param = "your", "chat_template"
            raise InvalidRequest(
                f"messages: {whose} chat template refuses them: {unmarked(str(error))[:500]}",
                param=param,
            ) from error

    def _control(self, source: str) -> ControlTokens:
        if source not in self._controls:
            if len(self._controls) >= _SOURCES:
                self._controls.clear()
            added = self._tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
            self._controls[source] = ControlTokens(
                [token.content for token in added if token.special],
                [token.content for token in added],
                source,
            )
        return self._controls[source]

    def _in_words(
        self, source: str, tools: Sequence[Mapping[str, Any]] | None, place: TemplatePlace
    ) -> bool:
        """Return whether tools, calls and results reach this template as text.

        Raises UnsupportedParameter."""
        missing = (
            place is TemplatePlace.NOWHERE
            if tools is not None
            else not _takes("tool_calls", source)
        )
        if self._tool_prompt is ToolPrompt.GENERIC:
            return True
        if self._tool_prompt is ToolPrompt.AUTO:
            return missing
        if tools is not None and missing:
            raise UnsupportedParameter(
                "tools: this base's chat template cannot take tools; leave them out, or start the "
                "server with --tool-prompt auto",
                param="tools",
            )
        return False

    def _form(self, source: str, *, keep: bool) -> ChatTemplate:
        if source in self._forms:
            return self._forms[source]

        made = ChatTemplate(source, partial(self._render, source))
        if keep:
            self._forms[source] = made
        return made

    def _render(
        self, source: str, messages: Messages, /, *, tools: Messages | None = None, **more: Any
    ) -> str:
        """`more`: other arguments of `apply_chat_template` and variables of the template."""
        return str(
            self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=source,
                tools=None if tools is None else [dict(one) for one in tools],
                tokenize=False,
                **more,
            )
        )

    def _template(self, tools: object) -> str:
        try:
            return str(self._tokenizer.get_chat_template(tools=tools))
        except ValueError as error:
            raise UnsupportedParameter(
                "messages: this base has no chat template; use /v1/completions", param="messages"
            ) from error


def _takes(name: str, source: str) -> bool:
    """Return whether a template reads this variable."""
    return re.search(rf"\b{name}\b", source) is not None
