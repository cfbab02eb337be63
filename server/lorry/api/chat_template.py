"""Finds out in which form a chat template takes messages: content as a string or in parts, a
call's arguments as an object or as JSON, and which roles.

Templates differ, and a model's files do not say how. So each template is tried once with short
conversations of every role, with a string and with the same text in parts; its output shows which
it supports. Parts that a template would ignore, or print like a Python list, are never given
to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import jinja2

REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""Exceptions of rendering if a template and messages do not fit."""

Messages = Sequence[Mapping[str, Any]]

_ONE, _TWO = "lorry-first", "lorry-second"

_WRITTEN_OUT = re.compile(r"""text\\?['"]: ?\\?['"]lorry-""")
"""A part as Python or JSON prints it."""

_CALL_ID = "call00001"
"""Nine characters, as Mistral's templates require."""

_ASKED = {"role": "user", "content": "a"}

_NO_PARAMETERS = {"type": "object", "properties": {}, "required": []}

_LONG_ID = "call_0123456789abcdef01234567"
"""A typical id from a client."""


class TemplateForm(Enum):
    """The form of a message's content."""

    TEXT = auto()
    PARTS = auto()
    """A list of any number of parts."""
    PART = auto()
    """A list of which the template reads only the first part."""


class TemplatePlace(Enum):
    """Where a template reads tools."""

    VARIABLE = auto()
    """`tools`, as in most templates."""
    SYSTEM = auto()
    """The system message's `tools`, as a JSON string, as in Phi-4."""
    NOWHERE = auto()


class TemplateEnding(Enum):
    """The end of a rendered chat."""

    TURN = auto()
    """The beginning of the assistant's turn."""
    MESSAGE = auto()
    """The last message."""
    OPEN = auto()
    """The last message without its end mark, so that the answer continues it."""


class ChatTemplate:
    """The forms that one template takes. Thread-safe: finding one twice does no harm."""

    def __init__(self, source: str, render: Callable[..., str]) -> None:
        """`render` takes messages and, by name, `tools`. It may raise any of `REFUSALS`."""
        self._render = render
        self._texts: dict[str, TemplateForm] = {}
        self._parts: dict[str, TemplateForm] = {}
        self._arguments_as_json: bool | None = None
        self._short_ids: bool | None = None
        self._system: bool | None = None
        self._place: TemplatePlace | None = None
        self._knows_developer = re.search(r"""['"]developer['"]""", source) is not None

    def fitted(self, messages: Messages) -> list[dict[str, Any]]:
        """Return the messages in the template's form. Content is a string, a list of text parts, or
        absent; arguments are an object, or JSON."""
        return [self._fitted(message) for message in messages]

    def takes_system(self) -> bool:
        """Return whether it shows system messages."""
        if self._system is None:
            contents = (_ONE + _TWO, _parts(_ONE + _TWO))
            self._system = any(self._shows("system", content) for content in contents)
        return self._system

    def tools_place(self) -> TemplatePlace:
        """Return where the template reads tools. Some mention tools and show none."""
        if self._place is None:
            system = {"role": "system", "content": "a"}
            function = {"name": _ONE, "description": "a", "parameters": _NO_PARAMETERS}
            tool = {"type": "function", "function": function}
            in_system = {**system, "tools": json.dumps([function])}
            if any(self._names(one, [tool]) for one in ([_ASKED], [system, _ASKED])):
                self._place = TemplatePlace.VARIABLE
            elif self._names([in_system, _ASKED], None):
                self._place = TemplatePlace.SYSTEM
            else:
                self._place = TemplatePlace.NOWHERE
        return self._place

    def _names(self, messages: Messages, tools: list[dict[str, Any]] | None) -> bool:
        """Return whether the template writes the name of the function."""
        try:
            return _ONE in self._render(messages, tools=tools)
        except REFUSALS:
            return False

    def _fitted(self, message: Mapping[str, Any]) -> dict[str, Any]:
        fitted = dict(message)
        if fitted["role"] == "developer" and not self._knows_developer:
            # Templates know the older name for instructions.
            fitted["role"] = "system"
        if fitted.get("tool_calls"):
            fitted["tool_calls"] = [self._call(call) for call in fitted["tool_calls"]]
        if fitted.get("tool_call_id"):
            fitted["tool_call_id"] = self._id(fitted["tool_call_id"])
        content = fitted.get("content")
        if content is None:
            return fitted
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        form = self._form(fitted["role"], self._texts if isinstance(content, str) else self._parts)
        if form is TemplateForm.TEXT:
            fitted["content"] = "".join(texts)
        elif form is TemplateForm.PART:
            fitted["content"] = _parts("".join(texts))
        else:
            fitted["content"] = _parts(*texts)
        return fitted

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        arguments, as_json = call["function"]["arguments"], self._takes_json()
        if as_json and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not as_json and isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        fitted = {**call, "function": {**call["function"], "arguments": arguments}}
        return {**fitted, "id": self._id(call["id"])} if call.get("id") else fitted

    def _takes_json(self) -> bool:
        """Return whether it takes arguments as JSON rather than as an object."""
        if self._arguments_as_json is None:
            self._arguments_as_json = not self._calls({_ONE: _TWO}) and self._calls(
                json.dumps({_ONE: _TWO})
            )
        return self._arguments_as_json

    def _no_arguments(self) -> object:
        return json.dumps({}) if self._takes_json() else {}

    def _id(self, given: str) -> str:
        """Return a call's id for the template. Mistral's templates refuse longer ids than their
        own, and an id only connects a result with its call."""
        if self._short_ids is None:
            self._short_ids = not self._identifies(_LONG_ID) and self._identifies(_CALL_ID)
        if not self._short_ids or (len(given) == len(_CALL_ID) and given.isalnum()):
            return given
        return hashlib.sha256(given.encode()).hexdigest()[: len(_CALL_ID)]

    def _identifies(self, given: str) -> bool:
        """Return whether the template takes calls and results with this id."""
        try:
            self._render(_called(self._no_arguments(), call_id=given))
        except REFUSALS:
            return False
        return True

    def _calls(self, arguments: object) -> bool:
        """Return whether the template writes a call's arguments in this form correctly, neither as
        Python would print them nor encoded as JSON twice."""
        try:
            text = self._render(_called(arguments))
        except REFUSALS:
            return False
        return _ONE in text and _TWO in text and re.search(rf"""['\\]['"]?{_ONE}""", text) is None

    def _form(self, role: str, forms: dict[str, TemplateForm]) -> TemplateForm:
        if role not in forms:
            text = self._shows(role, _ONE + _TWO)
            parts = self._shows(role, _parts(_ONE, _TWO))
            one = (
                TemplateForm.PART
                if self._shows(role, _parts(_ONE + _TWO)) and not text
                else TemplateForm.TEXT
            )
            self._texts[role] = TemplateForm.TEXT if text else TemplateForm.PARTS if parts else one
            self._parts[role] = TemplateForm.PARTS if parts else one
        return forms[role]

    def _shows(self, role: str, content: object) -> bool:
        """Return whether the template writes all of a message with this content, and only its
        text."""
        if role == "tool":
            conversation = _called(self._no_arguments(), result=content)
        else:
            conversation = _conversation(role, content)
        try:
            text = self._render(conversation)
        except REFUSALS:
            return False
        return _ONE in text and _TWO in text and _WRITTEN_OUT.search(text) is None


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _conversation(role: str, content: object) -> list[dict[str, Any]]:
    """Return a conversation with a message of that role in a usual position."""
    tried = {"role": role, "content": content}
    if role in ("system", "developer"):
        return [tried, _ASKED]
    return [_ASKED, tried, _ASKED] if role == "assistant" else [tried]


def _called(
    arguments: object, *, call_id: str = _CALL_ID, result: object = "a"
) -> list[dict[str, Any]]:
    """Return a conversation with a call and its result."""
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}
    answered = {"role": "tool", "content": result, "name": "f", "tool_call_id": call_id}
    return [_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, answered]
