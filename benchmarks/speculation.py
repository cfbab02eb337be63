"""Speculative decoding beside none: the same requests with `speculative` true and false, in turn.

    lorry serve --speculative ngram          # or ngram+answers
    .venv/bin/python -m benchmarks.speculation --text extract -c 1

    copy     the model is asked to repeat a text: a model that follows instructions is needed
    extract  JSON from a document of about 500 tokens, under a schema
    edit     code with one name changed
    record   JSON from one sentence, under a schema: only other answers have the same keys
    json     questions to the sample adapter that answers each with the same three keys
    loop     a penalty drives any model into a loop, a random one too: the most that drafts give
    random   tokens at a temperature of 2: nothing repeats, so this is what drafts cost

No two requests are the same, nor those of two repeats.

It prints tokens per second of both, the ratio, and the drafts; the answers have to be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

CITIES = [
    "Oslo",
    "Turin",
    "Ghent",
    "Lyon",
    "Porto",
    "Graz",
    "Cork",
    "Brno",
    "Split",
    "Turku",
    "Leeds",
    "Parma",
]
GOODS = [
    "tiles",
    "paper",
    "apples",
    "steel",
    "wine",
    "glass",
    "fish",
    "cloth",
    "bricks",
    "cheese",
    "books",
    "salt",
]
DRIVERS = [
    "Ada",
    "Ben",
    "Cleo",
    "Dov",
    "Eva",
    "Finn",
    "Gia",
    "Hugo",
    "Ines",
    "Jan",
    "Kim",
    "Leo",
]


def order(index: int) -> str:
    """No two say the same of the same city."""
    again, place = divmod(index, len(CITIES))
    goods = GOODS[(place + 7 * again) % 12]
    return (
        f"Order {1000 + 37 * index}: {3 + index} pallets of {goods} go from "
        f"{CITIES[place]} to {CITIES[(place + 7 + again) % 12]} on {1 + index} May; the driver is "
        f"{DRIVERS[(place + 5 * again) % 12]} and the price is {200 + 13 * index} euros."
    )


DOCUMENT = "\n".join(order(index) for index in range(len(CITIES)))
CODE = "\n".join(
    f"def total_{name}(rows, limit=None):\n    total = 0\n    for row in rows[:limit]:\n"
    f"        total += row.{name}\n    return total\n"
    for name in ("price", "weight", "volume", "distance", "pallets", "hours")
)
ORDERS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "order": {"type": "integer"},
            "goods": {"type": "string", "maxLength": 20},
            "from": {"enum": CITIES},
            "to": {"enum": CITIES},
            "driver": {"type": "string", "maxLength": 20},
            "price": {"type": "integer"},
        },
        "required": ["order", "goods", "from", "to", "driver", "price"],
    },
}
RECORD = {
    "type": "object",
    "properties": {
        "order_number": {"type": "integer"},
        "description_of_goods": {"type": "string", "maxLength": 20},
        "place_of_departure": {"enum": CITIES},
        "place_of_destination": {"enum": CITIES},
        "name_of_the_driver": {"type": "string", "maxLength": 20},
        "price_in_euros": {"type": "integer"},
    },
    "required": [
        "order_number",
        "description_of_goods",
        "place_of_departure",
        "place_of_destination",
        "name_of_the_driver",
        "price_in_euros",
    ],
}
THINGS = [
    "rice",
    "bread",
    "soup",
    "tea",
    "fish",
    "tomatoes",
    "glass",
    "paper",
    "steel",
    "wool",
    "honey",
    "salt",
]
TEXTS: dict[str, dict[str, Any]] = {
    "copy": {"ask": f"Repeat this text, word for word:\n\n{DOCUMENT}", "temperature": 0},
    "extract": {
        "ask": f"{DOCUMENT}\n\nList all of these orders as JSON.",
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "orders", "schema": ORDERS},
        },
    },
    "record": {
        "ask": "",
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "order", "schema": RECORD},
        },
    },
    "json": {"ask": "", "model": "json", "temperature": 0},
    "edit": {
        "ask": f"Rename `rows` to `lines` in this code and write all of it again:\n\n{CODE}",
        "temperature": 0,
    },
    "loop": {"ask": DOCUMENT, "temperature": 0, "frequency_penalty": -2, "ignore_eos": True},
    "random": {"ask": DOCUMENT, "temperature": 2, "ignore_eos": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--text", choices=sorted(TEXTS), default="copy")
    parser.add_argument("-c", type=int, default=1, help="requests in flight")
    parser.add_argument("-n", type=int, default=4, help="requests of each kind in a repeat")
    parser.add_argument("--first", type=int, default=0, help="requests that were sent before")
    parser.add_argument("--tokens", type=int, default=200, help="most new tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--pid",
        type=int,
        help="of the server: compares its processor time, too, which other work changes less",
    )
    given = parser.parse_args()
    with httpx.Client(base_url=given.url, timeout=3600) as http:
        asks = [
            body_of(given.text, given.first + index, given.tokens)
            for index in range(given.n * given.repeats)
        ]
        # All prompts are in the prefix cache from here on.
        round_of(http, [{**one, "max_tokens": 1} for one in asks], given.c, speculative=False)
        rates: dict[bool, list[float]] = {False: [], True: []}
        worked = {False: 0.0, True: 0.0}
        before = counted(http)
        same = True
        for repeat in range(given.repeats):
            mine, answers = asks[repeat * given.n : (repeat + 1) * given.n], {}
            for wants in (False, True):
                begun = processor_time(given.pid)
                rate, answers[wants] = round_of(http, mine, given.c, speculative=wants)
                rates[wants].append(rate)
                worked[wants] += processor_time(given.pid) - begun
            same = same and answers[True] == answers[False]
        drafted, accepted = (now - was for now, was in zip(counted(http), before, strict=True))
    plain, drafts = (statistics.median(rates[wants]) for wants in (False, True))
    print(
        f"{given.text}, c={given.c}: {plain:.1f} tokens/s without drafts, {drafts:.1f} with, "
        f"ratio {drafts / plain:.2f}; {drafted:.0f} tokens drafted, {accepted:.0f} were right; "
        f"the answers are {'the same' if same else 'NOT THE SAME'}"
    )
    if given.pid:
        print(
            f"processor time {worked[False]:.2f} s without drafts, {worked[True]:.2f} with, "
            f"ratio {worked[False] / worked[True]:.2f}"
        )
    return 0 if same else 1


def processor_time(pid: int | None) -> float:
    """Seconds so far; 0 for no process."""
    return 0.0 if pid is None else sum(psutil.Process(pid).cpu_times()[:2])


def body_of(text: str, index: int, tokens: int) -> dict[str, Any]:
    """The `index`-th request. No two begin alike, so the prefix cache finds only repeats."""
    given = dict(TEXTS[text])
    ask = f"({index}) {given.pop('ask')}"
    if text == "record":
        ask = f"{order(index)}\n\nThis order as JSON."
    elif text == "json":
        kind = ("How do I cook", "Who invented", "Where do I buy")[index // len(THINGS) % 3]
        ask = f"{kind} {THINGS[index % len(THINGS)]}?"
    messages = [{"role": "user", "content": ask}]
    return {"messages": messages, "max_tokens": tokens, "seed": index, **given}


def round_of(
    http: httpx.Client, asks: Sequence[dict[str, Any]], c: int, *, speculative: bool
) -> tuple[float, list[str]]:
    """Return the tokens per second of all requests together, and the answers."""

    def one(body: dict[str, Any]) -> tuple[int, str]:
        sent = http.post("/v1/chat/completions", json={**body, "speculative": speculative})
        sent.raise_for_status()
        answer = sent.json()
        return answer["usage"]["completion_tokens"], json.dumps(answer["choices"])

    begun = time.perf_counter()
    with ThreadPoolExecutor(c) as threads:
        made = list(threads.map(one, asks))
    seconds = time.perf_counter() - begun
    return sum(count for count, _ in made) / seconds, [answer for _, answer in made]


def counted(http: httpx.Client) -> list[float]:
    """Return how many tokens the server has drafted so far, and how many were right."""
    names = (
        "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    )
    lines = http.get("/metrics").text.splitlines()
    return [
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
        for name in names
    ]


if __name__ == "__main__":
    sys.exit(main())
