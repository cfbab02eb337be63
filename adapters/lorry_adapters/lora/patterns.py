"""Regular expressions written by strangers, matched in bounded time.

An adapter's config may name modules by regular expressions. Python's `re` backtracks: a
dozen characters of `(a+)+$` can hold the process, and the GIL, for hours. A `Pattern`
answers the one question that is asked here, whether a *whole* module name matches, by
walking all alternatives at once: an expression is a function from the set of positions
where it may start to the set of positions where it may end, and a set of positions is the
bits of one int. Every step is paid from a `Budget`; an expression that spends it is refused.

The grammar is Python's own (its parser reads the expression), so what is accepted means the
same as in `re.fullmatch`; back-references, conditionals, atomic groups and possessive
quantifiers, whose answer depends on the order of the search, are refused by name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.problems import shown

MAX_PATTERN: Final = 4096
"""Characters of one expression; the longest seen in the wild have about 700."""

BUDGET: Final = 4_000_000
"""Steps for one adapter over all modules of the base: a second or two of one core."""

MAX_PATTERNS: Final = 1 << 16
"""Characters of all expressions of one config together: what building them may cost."""

_MAX_DEPTH: Final = 60
_NESTED: Final = "is nested too deeply"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.]+")
_NESTED_SET: Final = re.compile(r"\[\^?\[|--|&&|~~|\|\|")
"""What Python's parser warns of, on the server's standard error for a stranger's file."""

_ORDERED: Final = {
    "GROUPREF": "a back-reference",
    "GROUPREF_IGNORE": "a back-reference",
    "GROUPREF_EXISTS": "a conditional group",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive quantifier",
}
_CATEGORIES: Final = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}


class Budget:
    """Steps left for matching one adapter's expressions; shared by all of them."""

    __slots__ = ("_left",)

    def __init__(self, steps: int = BUDGET) -> None:
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Raises InvalidAdapter when nothing is left."""
        self._left -= steps
        if self._left < 0:
            raise InvalidAdapter(
                ["the regular expressions in the config take too long to match: simplify them, "
                 "or list the modules by name"]
            )  # fmt: skip


class _Text:
    """One module name under examination."""

    __slots__ = ("_masks", "budget", "chars", "length", "text")

    def __init__(self, text: str, budget: Budget) -> None:
        self.text = text
        self.length = len(text)
        self.budget = budget
        self.chars: dict[str, int] = {}
        for position, char in enumerate(text):
            self.chars[char] = self.chars.get(char, 0) | 1 << position
        self._masks: dict[re.Pattern[str], int] = {}

    def where(self, one: re.Pattern[str]) -> int:
        """The positions whose character matches `one`."""
        mask = self._masks.get(one)
        if mask is None:
            self.budget.spend(len(self.chars))
            mask = 0
            for char, positions in self.chars.items():
                if one.fullmatch(char):
                    mask |= positions
            self._masks[one] = mask
        return mask


Value = TypeVar("Value")
_Node = Callable[[_Text, int], int]


class Pattern:
    """`re.fullmatch(source, name) is not None`, in bounded time.

    With `suffix`, a part of the name that follows a dot may match instead. Raises
    InvalidAdapter when the expression cannot be parsed or served; `where` names its field.
    """

    __slots__ = ("_node",)

    def __init__(self, source: str, *, where: str, suffix: bool = False) -> None:
        if len(source) > MAX_PATTERN:
            raise InvalidAdapter(
                [
                    f"{where}: a regular expression of {len(source)} characters; "
                    f"at most {MAX_PATTERN} are accepted"
                ]
            )
        if _NESTED_SET.search(source):
            raise InvalidAdapter(
                [f"{where}: {shown(source)} has a nested set, whose meaning Python will change"]
            )
        try:
            # Only the parser: compiling costs up to 20 ms for every few characters of a class.
            parser: Any = importlib.import_module("re._parser")
            tree = parser.parse(rf"(.*\.)?({source})" if suffix else source)
            self._node = _sequence(tree, tree.state.flags, 0)
        except RecursionError:
            raise InvalidAdapter([f"{where}: the regular expression {_NESTED}"]) from None
        except (re.error, OverflowError, ValueError, Warning) as error:
            raise InvalidAdapter(
                [f"{where}: {shown(source)} is not a usable regular expression: {error}"]
            ) from None

    def matches(self, name: str, budget: Budget) -> bool:
        text = _Text(name, budget)
        return bool(self._node(text, 1) >> text.length & 1)


class SuffixRules(Generic[Value]):
    """PEFT's `rank_pattern` and `alpha_pattern`: the first that matches a module wins.

    `re.match(rf"(.*\\.)?({source})$", name)`: a whole name, or what follows one of its dots.
    Raises InvalidAdapter with every source that cannot be served.
    """

    __slots__ = ("_machines", "_plain")

    def __init__(self, rules: Mapping[str, Value], *, where: str) -> None:
        # Most sources are plain paths, often one for each module of the base, and need no
        # machine; but their dots match any character, as the expressions they are. Those of
        # one length with dots in the same places are looked up together.
        self._plain: dict[tuple[int, tuple[int, ...]], dict[str, tuple[int, Value]]] = {}
        self._machines: list[tuple[int, Pattern, Value]] = []
        problems: list[str] = []
        length = sum(len(source) for source in rules if not _PLAIN.fullmatch(source))
        if length > MAX_PATTERNS:
            raise InvalidAdapter(
                [
                    f"{where} has {length} characters of regular expressions; "
                    f"at most {MAX_PATTERNS} are accepted"
                ]
            )
        for order, (source, value) in enumerate(rules.items()):
            if _PLAIN.fullmatch(source):
                dots = tuple(at for at, char in enumerate(source) if char == ".")
                self._plain.setdefault((len(source), dots), {})[source] = (order, value)
                continue
            try:
                pattern = Pattern(source, where=where, suffix=True)
            except InvalidAdapter as error:
                problems.extend(error.problems)
            else:
                self._machines.append((order, pattern, value))
        if problems:
            raise InvalidAdapter(problems)

    def find(self, name: str, budget: Budget) -> Value | None:
        first: tuple[int, Value] | None = None
        budget.spend(len(self._plain))
        for (length, dots), table in self._plain.items():
            start = len(name) - length
            if start < 0 or (start > 0 and name[start - 1] != "."):
                continue
            found = table.get(_dotted(name[start:], dots))
            if found is not None and (first is None or found[0] < first[0]):
                first = found
        for order, pattern, value in self._machines:
            if first is not None and first[0] < order:
                break
            if pattern.matches(name, budget):
                return value
        return None if first is None else first[1]


def _dotted(suffix: str, dots: tuple[int, ...]) -> str:
    """`suffix` with a dot in each of these places."""
    if all(suffix[at] == "." for at in dots):
        return suffix
    chars = list(suffix)
    for at in dots:
        chars[at] = "."
    return "".join(chars)


def _sequence(items: Any, flags: int, depth: int) -> _Node:
    if depth > _MAX_DEPTH:
        raise ValueError(_NESTED)
    nodes = [_build(str(op), argument, flags, depth) for op, argument in items]
    if len(nodes) == 1:
        return nodes[0]

    def run(text: _Text, starts: int) -> int:
        for node in nodes:
            if not starts:
                return 0
            starts = node(text, starts)
        return starts

    return run


def _build(op: str, argument: Any, flags: int, depth: int) -> _Node:
    match op:
        case "LITERAL":
            return _char(_escaped(argument), flags)
        case "NOT_LITERAL":
            return _char(f"[^{_escaped(argument)}]", flags)
        case "ANY":
            return _char(".", flags)
        case "IN":
            return _char(_class(argument), flags)
        case "BRANCH":
            return _branch([_sequence(one, flags, depth + 1) for one in argument[1]])
        case "SUBPATTERN":
            _, added, removed, body = argument
            return _sequence(body, (flags | added) & ~removed, depth + 1)
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, body = argument
            return _repeat(_sequence(body, flags, depth + 1), int(least), int(most))
        case "ASSERT" | "ASSERT_NOT":
            direction, body = argument
            back, most = body.getwidth()
            if direction < 0 and back != most:
                raise ValueError("look-behind requires fixed-width pattern")
            return _look(_sequence(body, flags, depth + 1), direction, int(back), op == "ASSERT")
        case "AT":
            return _at(str(argument), flags)
        case "FAILURE":
            return lambda text, starts: 0
        case _:
            raise ValueError(f"{_ORDERED.get(op, op.lower())} is not served")


def _escaped(code: int) -> str:
    if code > 0x7F:
        raise ValueError("a character beyond ASCII, which no module's name has")
    return f"\\x{code:02x}"


def _class(items: Any) -> str:
    parts = []
    for op, argument in items:
        match str(op):
            case "NEGATE":
                parts.append("^")
            case "LITERAL":
                parts.append(_escaped(argument))
            case "RANGE":
                parts.append(f"{_escaped(argument[0])}-{_escaped(argument[1])}")
            case "CATEGORY":
                parts.append(_CATEGORIES[str(argument)])
            case other:
                raise ValueError(f"{other.lower()} is not served")
    return f"[{''.join(parts)}]"


def _char(source: str, flags: int) -> _Node:
    # `re` itself judges single characters: case folding and classes stay exactly Python's.
    one = re.compile(source, flags & ~re.VERBOSE)

    def run(text: _Text, starts: int) -> int:
        text.budget.spend()
        return (starts & text.where(one)) << 1

    return run


def _branch(nodes: list[_Node]) -> _Node:
    def run(text: _Text, starts: int) -> int:
        text.budget.spend(len(nodes))
        ends = 0
        for node in nodes:
            ends |= node(text, starts)
        return ends

    return run


def _repeat(body: _Node, least: int, most: int) -> _Node:
    def run(text: _Text, starts: int) -> int:
        # A path of more steps than there are positions stands still somewhere, so past
        # length + 1 rounds another one changes nothing, however large the bounds are.
        rounds = text.length + 2
        for _ in range(min(least, rounds)):
            text.budget.spend()
            starts = body(text, starts)
            if not starts:
                return 0
        ends = fresh = starts
        for _ in range(min(most - least, rounds)):
            text.budget.spend()
            fresh = body(text, fresh) & ~ends
            if not fresh:
                break
            ends |= fresh
        return ends

    return run


def _look(body: _Node, direction: int, back: int, wanted: bool) -> _Node:
    def run(text: _Text, starts: int) -> int:
        kept = 0
        for position in range(text.length + 1):
            here = 1 << position
            if not starts & here:
                continue
            text.budget.spend()
            if direction > 0:
                found = body(text, here) != 0
            else:
                found = position >= back and bool(body(text, here >> back) & here)
            if found == wanted:
                kept |= here
        return kept

    return run


def _at(code: str, flags: int) -> _Node:
    if code in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return lambda text, starts: starts & 1
    if code in ("AT_END", "AT_END_STRING"):
        # Module names hold no newline, before which `$` would match as well.
        return lambda text, starts: starts & 1 << text.length
    if code not in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
        raise ValueError(f"{code.lower()} is not served")
    word = re.compile(r"\w", flags & ~re.VERBOSE)

    def run(text: _Text, starts: int) -> int:
        text.budget.spend()
        words = text.where(word)
        borders = words ^ (words << 1)
        return starts & (borders if code == "AT_BOUNDARY" else ~borders)

    return run
