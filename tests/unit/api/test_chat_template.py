"""Chats as transformers' own `apply_chat_template` renders them, in the form that a template takes.

The templates are short ones of our own, each with one habit of those that models come with.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from lorry.api.messages import template_messages
from lorry.api.prompts import Prompts
from lorry.errors import InvalidRequest, UnsupportedParameter
from support.tokenizer import build_tokenizer

TURN = "<|im_start|>{{ m['role'] }}\n"
LOOP = "{% for m in messages %}"
DONE = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PARTS = "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
EITHER = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    + PARTS
    + "{% endfor %}{% endif %}"
)

CHATML = LOOP + TURN + "{{ m['content'] }}" + DONE
GENERATION = (
    LOOP + TURN + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}" + DONE
)
TRIMMED = LOOP + TURN + "{{ m['content'] | trim }}" + DONE
LISTED = LOOP + TURN + PARTS + "\n{% endfor %}" + DONE
BOTH = LOOP + TURN + EITHER + DONE
FIRST = LOOP + TURN + "{{ m['content'][0]['text'] }}" + DONE
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% if messages[0]['content'] is string %}"
    "{% set system = messages[0]['content'] %}{% else %}"
    "{% set system = messages[0]['content'][0]['text'] %}{% endif %}"
    "{% set messages = messages[1:] %}[{{ system }}]{% endif %}" + BOTH
)
FOLDED = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}]{% if loop.first %}{{ first }}{% endif %}{{ m['content'] }}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHATML
)
DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' %}<|start|>developer # Instructions: "
    "{{ m.content }}{% else %}<|start|>{{ m.role }}: {{ m.content }}{% endif %}{% endfor %}"
)
DATED = (
    "{{ strftime_now('%Y') }} {% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
)
QUOTED = LOOP + TURN + "{{ m['content'] | tojson }}" + DONE

TEMPLATES = {
    "chatml": CHATML,
    "generation": GENERATION,
    "trimmed": TRIMMED,
    "listed": LISTED,
    "both": BOTH,
    "first": FIRST,
    "system first": SYSTEM_FIRST,
    "folded": FOLDED,
    "developer": DEVELOPER,
    "dated": DATED + CHATML,
    "quoted": QUOTED,
}

TAKES_PARTS = {"listed", "both", "first"}
"""Of a user's message."""


def made(source: str) -> Prompts:
    tokenizer = build_tokenizer(add_bos=True)
    tokenizer.chat_template = source
    return Prompts(tokenizer)


def chat(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    given: dict[str, Any] = {"tools": None, "variables": {}, **options}
    return asyncio.run(made(source).chats.rendered(template_messages(messages), **given)).text


def expected(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = build_tokenizer(add_bos=True)
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=True, **options
        )
    )


def part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": text}


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_rendered_as_by_transformers(name: str) -> None:
    source = TEMPLATES[name]
    texts = [("system", " be kind "), ("user", "hi"), ("assistant", "ho"), ("user", "you there?")]
    messages = [{"role": role, "content": text} for role, text in texts]
    form = messages
    if name in ("listed", "first"):
        form = [{"role": role, "content": [part(text)]} for role, text in texts]
    got = chat(source, messages, variables={"enable_thinking": False})
    assert got == expected(source, form, enable_thinking=False)
    for _, text in texts:
        assert text.strip() in got


@pytest.mark.parametrize("name", TEMPLATES)
def test_parts_are_rendered_in_the_form_that_the_template_takes(name: str) -> None:
    source = TEMPLATES[name]
    parts = [part("How do I ", "input_text"), part("cook rice?")]
    got = chat(source, [{"role": "user", "content": parts}])
    form: Any = "How do I cook rice?"
    if name == "first":
        form = [part(form)]
    elif name in TAKES_PARTS or name == "system first":
        form = [part("How do I "), part("cook rice?")]
    assert got == expected(source, [{"role": "user", "content": form}])
    assert "rice?" in got and "How do I" in got and "'text'" not in got


def test_a_system_message_in_parts_loses_none() -> None:
    """Such a template reads the first part of a system message, and all of a user's."""
    messages = [
        {"role": "system", "content": [part("Be "), part("kind.")]},
        {"role": "user", "content": [part("h"), part("i")]},
    ]
    got = chat(SYSTEM_FIRST, messages)
    assert got == expected(SYSTEM_FIRST, [{"role": "system", "content": "Be kind."}, messages[1]])
    assert got.startswith("[Be kind.]")


@pytest.mark.parametrize("name", TEMPLATES)
def test_developer_is_for_templates_that_know_it(name: str) -> None:
    source = TEMPLATES[name]
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": "hi"}]
    role = "developer" if name == "developer" else "system"
    instructions = {"role": role, "content": "be kind"}
    if name in ("listed", "first"):
        instructions["content"] = [part("be kind")]  # type: ignore[assignment]
        form = [instructions, {"role": "user", "content": [part("hi")]}]
    else:
        form = [instructions, messages[1]]
    assert chat(source, messages) == expected(source, form)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_template_that_knows_no_instructions_says_so(role: str) -> None:
    messages = [{"role": role, "content": "be kind"}, {"role": "user", "content": "hi"}]
    with pytest.raises(InvalidRequest, match="System role not supported"):
        chat(NO_SYSTEM, messages)
    with pytest.raises(InvalidRequest, match="Roles must alternate"):
        chat(FOLDED, [messages[1], messages[1]])


CALLED = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
OBJECT = (
    CALLED + "{{ c.function.name }}={{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
JOINED = (
    CALLED
    + "{{ c['function']['name'] + '=' + c['function']['arguments'] }}{% endfor %}{% endfor %}"
)
PRINTED = CALLED + "{{ c.function.name }}={{ c.function.arguments }}{% endfor %}{% endfor %}"
ASKED = (
    CALLED + "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
    "{{ c.function.arguments | tojson }}{% endif %}{% endfor %}{% endfor %}"
)
ITEMS = (
    CALLED + "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}"
    "{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "as_json"),
    [(OBJECT, False), (JOINED, True), (PRINTED, True), (ASKED, False), (ITEMS, False)],
)
@pytest.mark.parametrize("sent", ['{"city":"Rome"}', {"city": "Rome"}])
def test_arguments_are_an_object_or_json_as_the_template_takes_them(
    source: str, as_json: bool, sent: Any
) -> None:
    def messages(arguments: Any) -> list[dict[str, Any]]:
        function = {"name": "weather", "arguments": arguments}
        call = {"id": "call00001", "type": "function", "function": function}
        return [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "call00001"},
        ]

    form: Any = {"city": "Rome"}
    if as_json:
        form = sent if isinstance(sent, str) else json.dumps(sent)
    assert chat(source, messages(sent)) == expected(source, messages(form))
    assert "'city'" not in chat(source, messages(sent))


def test_a_message_without_content_is_an_empty_text_where_the_template_needs_one() -> None:
    source = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{% if m.tool_calls %}!{% endif %}{% endfor %}"
    )
    function = {"name": "f", "arguments": "{}"}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
    ]
    assert chat(source, messages) == "user: hiassistant: !"


def test_calls_that_a_template_would_pass_over_are_texts() -> None:
    function = {"name": "f", "arguments": '{"x": 1}'}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    for source in (CHATML, FOLDED, NO_SYSTEM):
        got = chat(source, messages)
        assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>' in got
        assert "<tool_response>\n2\n</tool_response>" in got


def test_tools_reach_a_template_that_takes_no_system_message() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    for source in (CHATML, FOLDED, NO_SYSTEM, LISTED):
        got = chat(source, [{"role": "user", "content": "hi"}], tools=tools)
        assert "weather" in got and "hi" in got


def test_earlier_reasoning_reaches_the_template() -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}{% endfor %}"
    for key in ("reasoning_content", "reasoning", "thinking"):
        messages = [{"role": "assistant", "content": "4", key: "2 and 2"}]
        assert chat(source, messages) == expected(source, messages) == "2 and 2|4"


def test_documents() -> None:
    source = "{% for d in documents or [] %}{{ d.title }}: {{ d.text }}\n{% endfor %}" + CHATML
    documents = [{"title": "Rice", "text": "Boil it."}]
    messages = [{"role": "user", "content": "hi"}]
    got = chat(source, messages, documents=documents)
    assert got == expected(source, messages, documents=documents)
    assert got.startswith("Rice: Boil it.\n")
    with pytest.raises(UnsupportedParameter, match="documents"):
        chat(CHATML, messages, documents=documents)


MISTRAL = (
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id|length != 9 %}{{ raise_exception('nine!') }}{% endif %}"
    "{{ c.function.name }}[{{ c.id }}]{{ c.function.arguments }}{% endfor %}"
    "{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id|length != 9 %}{{ raise_exception('nine!') }}{% endif %}"
    "({{ m.tool_call_id }}){{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("given", ["call_0a1b2c3d4e5f60718293a4b5", "a12345678", "toolu_01A"])
def test_a_template_that_takes_short_ids_alone_gets_them(given: str) -> None:
    function = {"name": "f", "arguments": "{}"}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": given, "function": function}]},
        {"role": "tool", "content": "2", "tool_call_id": given},
    ]
    got = re.fullmatch(r"hif\[(\w{9})\]\{\}\((\w{9})\)2", chat(MISTRAL, messages))
    assert got is not None and got[1] == got[2]
    assert (got[1] == given) == (len(given) == 9 and given.isalnum())
    plain = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}{% endfor %}{% endfor %}"
    )
    assert chat(plain, messages) == given


NAMED = "{{ c.function.name + '=' + c.function.arguments }}"
JOINED_MISTRAL = MISTRAL.replace("{{ c.function.arguments }}", NAMED)


def test_a_result_alone_tells_nothing_wrong_of_ids() -> None:
    """The first request has a result and no call, by which it could be known that arguments are
    JSON."""
    chats = made(JOINED_MISTRAL).chats
    given = "call_0a1b2c3d4e5f60718293a4b5"
    result = {"role": "tool", "content": "2", "tool_call_id": given}
    call = {"id": given, "function": {"name": "f", "arguments": "{}"}}
    for calls in ([], [{"role": "assistant", "content": None, "tool_calls": [call]}]):
        messages = template_messages([{"role": "user", "content": "hi"}, *calls, result])
        got = asyncio.run(chats.rendered(messages, tools=None, variables={})).text
        assert re.search(r"\((\w{9})\)2$", got), got


def test_results_are_in_the_form_of_a_template_that_takes_arguments_as_json() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        + NAMED
        + "{% endfor %}"
        + PARTS
        + "{% endfor %}{% endfor %}"
    )
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ]
    assert chat(source, messages) == "hif={}rain"


def test_a_template_is_tried_once() -> None:
    prompts = made(CHATML)
    rendered = []
    render = prompts.chats._tokenizer.apply_chat_template

    def counting(messages: Any, **options: Any) -> Any:
        rendered.append(messages)
        return render(messages, **options)

    prompts.chats._tokenizer.apply_chat_template = counting  # type: ignore[method-assign]
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    for _ in range(2):
        rendered.clear()
        asyncio.run(prompts.chats.rendered(messages, tools=[WEATHER], variables={}))
    assert len(rendered) == 1


PHI = (
    "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m %}"
    "{{ '<|system|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}"
)
SPEAKS = CHATML + "{# tools #}{% if tools %}{% endif %}"
WEATHER = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
    ],
)
def test_tools_stand_in_the_system_message_where_the_template_looks_there(
    messages: list[dict[str, Any]],
) -> None:
    system = "Be kind." if len(messages) == 2 else ""
    got = chat(PHI, messages, tools=[WEATHER])
    assert got == f'<|system|>{system}<|tool|>[{{"name": "weather"}}]<|/tool|><|user|>hi'


def test_a_template_that_speaks_of_tools_and_shows_none_gets_them_in_words() -> None:
    got = chat(SPEAKS, [{"role": "user", "content": "hi"}], tools=[WEATHER])
    assert '{"type": "function", "function": {"name": "weather"}}' in got


def test_the_notation_is_that_of_the_template_or_of_the_words() -> None:
    messages = [{"role": "user", "content": "hi"}]
    shows = "{% for t in tools or [] %}[TOOL_CALLS]{{ t.function.name }}{% endfor %}"
    for source, name in ((shows, "mistral"), (CHATML + "{# [TOOL_CALLS] #}", "hermes")):
        got = asyncio.run(made(source).chats.rendered(messages, tools=[WEATHER], variables={}))
        assert got.notation.name == name


def test_a_template_with_words_of_its_own_takes_no_others() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert "Mine:" in chat(CHATML, messages, tools=[WEATHER], tool_prompt="Mine:")
    shows = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    with pytest.raises(UnsupportedParameter, match="tool_prompt"):
        chat(shows, messages, tools=[WEATHER], tool_prompt="Mine:")
