"""What crosses the engine's boundary comes out on the other side as it went in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.constraint import Constraint, Grammar, Rules, Vocabulary
from lorry.core import (
    AdapterUse,
    Base,
    Capacity,
    Drawn,
    EngineStats,
    Failure,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from lorry.engine import letters, wire
from lorry.engine.wire import FROM_ENGINE, TO_ENGINE, Codec
from lorry_adapters.lora.base import AliasPart, BaseLayout, BaseModule, BaseParameter
from lorry_adapters.lora.words import AddedToken

FINITE = st.floats(allow_nan=False, allow_infinity=True)
# Surrogates are no text: JSON bodies with them are refused.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)

st.register_type_strategy(float, FINITE)
st.register_type_strategy(str, TEXT)
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
# Of all that is one, MessagePack knows dicts alone, and nothing else is sent.
st.register_type_strategy(
    Mapping, lambda kind: st.dictionaries(*(st.from_type(one) for one in get_args(kind)))
)

KINDS = [
    (TO_ENGINE, letters.Submit),
    (TO_ENGINE, letters.Cancel),
    (TO_ENGINE, letters.Forget),
    (TO_ENGINE, wire.Pin),
    (TO_ENGINE, wire.Discard),
    (TO_ENGINE, wire.Stop),
    (FROM_ENGINE, wire.StartLine),
    (FROM_ENGINE, wire.StartRefused),
    (FROM_ENGINE, wire.TokenEvents),
    (FROM_ENGINE, wire.Stats),
    (FROM_ENGINE, wire.StepTaken),
    (FROM_ENGINE, wire.Cached),
    (FROM_ENGINE, wire.Broke),
]


@pytest.mark.parametrize(("codec", "kind"), KINDS, ids=lambda one: getattr(one, "__name__", ""))
@given(data=st.data())
def test_it_comes_out_as_it_went_in(codec: Codec, kind: type, data: st.DataObject) -> None:
    value = data.draw(st.from_type(kind))
    assert codec.decode(codec.encode(value)) == value


@given(
    base=st.builds(Base, about=st.dictionaries(TEXT, TEXT | st.integers(0, 9) | st.none())),
    layout=st.builds(
        BaseLayout,
        modules=st.dictionaries(TEXT, st.from_type(BaseModule), max_size=3),
        parameters=st.dictionaries(TEXT, st.from_type(BaseParameter), max_size=3),
        called=st.dictionaries(TEXT, TEXT, max_size=3),
        aliases=st.dictionaries(TEXT, st.tuples(st.from_type(AliasPart)), max_size=3),
    ),
    capacity=st.from_type(Capacity),
)
def test_what_a_started_engine_says_of_itself(
    base: Base, layout: BaseLayout, capacity: Capacity
) -> None:
    ready = wire.Ready(base, layout, capacity)
    assert FROM_ENGINE.decode(FROM_ENGINE.encode(ready)) == ready


@pytest.mark.parametrize(
    "kind",
    [
        AdapterUse,
        AddedToken,
        Capacity,
        Constraint,
        Drawn,
        EngineStats,
        Failure,
        Grammar,
        Request,
        Rules,
        SamplingParams,
        TokenEvent,
        TokenLogprob,
        Vocabulary,
        *(kind for _, kind in KINDS),
    ],
)
def test_it_cannot_be_changed(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    for name, hint in get_type_hints(kind).items():
        text = str(hint)
        mutable = ("list[", "dict[", "set[", "Callable")
        assert not any(word in text.replace("frozenset[", "") for word in mutable), (name, text)
    assert dataclasses.is_dataclass(kind)
