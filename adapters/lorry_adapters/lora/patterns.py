"""Untrusted regular expressions, matched in bounded time.

An adapter's config may name modules by regular expressions with the meaning of Python's `re`. That
module backtracks: a dozen characters of `(a+)+$` can hold the process, and the GIL, for hours. So
they are matched by the package `regex`, which lets other threads run and has a timeout. A
`Budget` limits the time of all expressions of one adapter.

`re` also compiles each of them, so an expression that it refuses is refused. Expressions that the
two packages read differently are refused by name: fuzzy matching (`a{e<=1}`, plain characters for
`re`), POSIX classes, sets within sets, and conditionals (decision 0028).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Final, Generic, TypeVar

import regex

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.problems import shown

MAX_PATTERN: Final = 4096
"""Characters of one expression; the longest published ones have about 700."""

LIMIT: Final = 3.0
"""Seconds of the thread's processor time for one adapter over all modules of the base. Published
expressions take a quarter of a second for 18,624 modules."""

MAX_PATTERNS: Final = 1 << 16
"""Characters of all expressions of one config together, which limits the time to compile them."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.]+")
_NESTED_SET: Final = re.compile(r"\[\^?\[|\[:|--|&&|~~|\|\|")
"""Causes warnings of Python's parser, which would appear on the server's standard error for an
untrusted file; also POSIX classes, which Python does not know."""
_NOT_A_COUNT: Final = re.compile(r"(?<!\\)\{(?!\d+(?:,\d*)?\}|,\d+\})")
"""A brace that is a plain character for `re` and fuzzy matching for `regex`."""
_CONDITIONAL: Final = re.compile(r"\(\?\(")
"""The two packages differ if it refers to a group around itself."""
_LEAST: Final = re.compile(r"\{(\d+)")
MAX_LEAST: Final = 1000
"""Limit on the product of an expression's minimum counts: `regex` expands `(?:a{1000}){1000}` to a
string of a million characters when it compiles it."""
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]|\\[uUN]")
"""In a class, a range of such characters takes seconds to compile."""


class Budget:
    """Processor time left for matching one adapter's expressions; shared by all of them."""

    __slots__ = ("_left",)

    def __init__(self, seconds: float = LIMIT) -> None:
        self._left = seconds

    def match(self, pattern: regex.Pattern[str], name: str) -> bool:
        """Match a name. Raises InvalidAdapter if no time is left."""
        before = time.thread_time()
        try:
            if self._left > 0:
                return pattern.fullmatch(name, timeout=self._left) is not None
        except (TimeoutError, MemoryError):
            self._left = 0.0
        finally:
            self._left -= time.thread_time() - before
        raise InvalidAdapter(
            ["the regular expressions in the config take too long to match: simplify them, or "
             "list the modules by name"]
        )  # fmt: skip


Value = TypeVar("Value")


class Pattern:
    """`re.fullmatch(source, name) is not None`, in bounded time.

    With `suffix`, a part of the name after a dot may match instead. Raises InvalidAdapter if the
    expression cannot be compiled or served; `where` names its field.
    """

    __slots__ = ("_compiled",)

    def __init__(self, source: str, *, where: str, suffix: bool = False) -> None:
        if len(source) > MAX_PATTERN:
            raise InvalidAdapter(
                [
                    f"{where}: a regular expression of {len(source)} characters; "
                    f"at most {MAX_PATTERN} are accepted"
                ]
            )
        for form, what in (
            (_NESTED_SET, "has a nested set, whose meaning Python will change"),
            (_NOT_A_COUNT, "has a { that does not begin a count; write \\{ for the character"),
            (_CONDITIONAL, "has a conditional group, which is not served"),
            (_BEYOND_ASCII, "has a character beyond ASCII, which no module's name has"),
        ):
            if form.search(source):
                raise InvalidAdapter([f"{where}: {shown(source)} {what}"])
        if math.prod(max(1, int(least)) for least in _LEAST.findall(source)) > MAX_LEAST:
            raise InvalidAdapter(
                [f"{where}: {shown(source)} repeats something more than {MAX_LEAST} times"]
            )
        whole = rf"(.*\.)?({source})" if suffix else source
        try:
            re.compile(whole)
            self._compiled = regex.compile(whole, flags=regex.VERSION0)
        except RecursionError:
            raise InvalidAdapter(
                [f"{where}: the regular expression is nested too deeply"]
            ) from None
        except (re.error, regex.error, OverflowError, ValueError, MemoryError) as error:
            raise InvalidAdapter(
                [f"{where}: {shown(source)} is not a usable regular expression: {error}"]
            ) from None

    def matches(self, name: str, budget: Budget) -> bool:
        return budget.match(self._compiled, name)


class SuffixRules(Generic[Value]):
    """PEFT's `rank_pattern` and `alpha_pattern`: the first that matches a module wins.

    `re.match(rf"(.*\\.)?({source})$", name)`: a whole name, or a part of it after a dot. Raises
    InvalidAdapter with every source that cannot be served.
    """

    __slots__ = ("_patterns", "_plain")

    def __init__(self, rules: Mapping[str, Value], *, where: str) -> None:
        # Most sources are plain paths, often one for each module of the base, and thousands of them
        # would be matched with thousands of names. But they are expressions, whose dots match any
        # character. So sources with the same length and the same positions of dots are looked up
        # together.
        self._plain: dict[tuple[int, tuple[int, ...]], dict[str, tuple[int, Value]]] = {}
        self._patterns: list[tuple[int, Pattern, Value]] = []
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
                self._patterns.append((order, pattern, value))
        if problems:
            raise InvalidAdapter(problems)

    def find(self, name: str, budget: Budget) -> Value | None:
        first: tuple[int, Value] | None = None
        for (length, dots), table in self._plain.items():
            start = len(name) - length
            if start < 0 or (start > 0 and name[start - 1] != "."):
                continue
            found = table.get(_dotted(name[start:], dots))
            if found is not None and (first is None or found[0] < first[0]):
                first = found
        for order, pattern, value in self._patterns:
            if first is not None and first[0] < order:
                break
            if pattern.matches(name, budget):
                return value
        return None if first is None else first[1]


def _dotted(suffix: str, dots: tuple[int, ...]) -> str:
    """Return `suffix` with a dot at each of these positions."""
    if all(suffix[at] == "." for at in dots):
        return suffix
    chars = list(suffix)
    for at in dots:
        chars[at] = "."
    return "".join(chars)
