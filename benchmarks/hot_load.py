"""An adapter is uploaded while seven streams run: how soon does it speak, and who waits for it?

Seven streams of seven adapters run without end. Then, again and again: an eighth adapter is
uploaded and asked at once (cold), and asked once more (warm). What is told: the time from the
start of the upload to its first token, the same for the warm request, and the longest that any
of the seven streams had to wait for a token meanwhile.

    python -m benchmarks.hot_load --json FILE
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

from lorry.bench import machine, own_server, random_adapters
from lorry.bench.administration import Administration, ServerRefused
from lorry.bench.answer import BenchAnswer
from lorry.bench.connection import Address, Connections
from lorry.bench.served_base import ServedBase
from lorry.bench.targets import LorryTarget
from lorry.bench.workload import Ask, WorkloadRow, plan
from lorry.configuration import load_settings
from lorry.errors import LorryError
from lorry.model.progress import meter_of

STREAMS = 7
RANK = 16
STREAM_SECONDS = 6.0
"""How long the streams run in each round: longer than anything that is measured in it."""

LEAD_SECONDS = 1.5
"""From the streams' start to the upload: their prompts are read by then."""

PROMPT_ROOM = 256
"""Tokens that a prompt may take."""

ASKED_TOKENS = 8
PAUSE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds."""

    upload: float
    """Until the upload was answered."""
    cold: float
    """From the start of the upload to the adapter's first token."""
    warm: float
    """From a request to its first token, with the adapter on the device."""
    cold_pause: float
    """The longest wait of a running stream during `cold`."""
    warm_pause: float
    usual_pause: float
    """Median between two tokens of the streams."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_load", description=__doc__)
    parser.add_argument("--model", help="the base, as for lorry serve")
    parser.add_argument("--home", help="where the base is cached, as for lorry serve")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("serve_flags", nargs="*", help="of lorry serve, after --")
    given = parser.parse_args()
    settings = load_settings({"model": given.model, "home": given.home}, os.environ)
    base = ServedBase(settings.model, settings.home, say, meter_of(say))
    where = machine.look()
    with (
        own_server.running(base.folder, base.name, given.serve_flags, waiting=lambda: None) as one,
        tempfile.TemporaryDirectory(prefix="lorry-bench-") as scratch,
        Administration(one.url, None) as administration,
    ):
        folders = []
        for index in range(STREAMS + given.rounds):
            folders.append(Path(scratch) / random_adapters.name_of(index, RANK))
            base.write_adapter(folders[-1], index, RANK)
        for folder in folders[:STREAMS]:
            administration.upload(folder.name, folder)
        rounds = asyncio.run(_rounds(one.url, administration, folders))
    middle = {
        name: round(statistics.median(getattr(one, name) for one in rounds), 4)
        for name in Round.__slots__
    }
    say(
        f"upload to first token {middle['cold'] * 1000:.0f} ms, warm {middle['warm'] * 1000:.0f} "
        f"ms; longest pause of the streams {middle['cold_pause'] * 1000:.0f} ms, "
        f"{middle['warm_pause'] * 1000:.0f} ms when warm, usually "
        f"{middle['usual_pause'] * 1000:.0f} ms"
    )
    if given.json is not None:
        document = {
            "machine": asdict(where),
            "median": middle,
            "rounds": [asdict(one) for one in rounds],
        }
        given.json.write_text(json.dumps(document, indent=2) + "\n")


async def _rounds(url: str, administration: Administration, folders: list[Path]) -> list[Round]:
    target = LorryTarget([folder.name for folder in folders])
    connections = Connections(Address.of(url), {"content-type": "application/json"})
    asks = plan(
        WorkloadRow("hot load", len(folders), concurrency=1, adapters=len(folders)), repeat=0
    )

    async def ask(index: int, tokens: int) -> BenchAnswer:
        one = asks[index]
        body = target.body(Ask(one.prompt, index, 1.0, tokens, 0.0))
        answer = await connections.send("POST", target.path, body)
        if answer.status != 200:
            raise ServerRefused(f"a stream was answered {answer.reason()}")
        return answer

    # How many tokens are that many seconds here?
    probe = await asyncio.gather(*(ask(stream, 16) for stream in range(STREAMS)))
    room = int(administration.info()["max_model_len"]) - PROMPT_ROOM
    count = min(room, int(STREAM_SECONDS / _usual(probe)))
    rounds = []
    for index in range(STREAMS, len(folders)):
        # Fresh streams each round, and long enough: none ends, and prefills anew, within it.
        running = [asyncio.create_task(ask(stream, count)) for stream in range(STREAMS)]
        await asyncio.sleep(min(LEAD_SECONDS, count * _usual(probe) / 4))
        started = perf_counter()
        await asyncio.to_thread(administration.upload, folders[index].name, folders[index])
        uploaded = perf_counter()
        cold = _first(await ask(index, ASKED_TOKENS))
        await asyncio.sleep(PAUSE_SECONDS)
        asked = perf_counter()
        warm = _first(await ask(index, ASKED_TOKENS))
        answers = await asyncio.gather(*running)
        rounds.append(
            Round(
                upload=uploaded - started,
                cold=cold - started,
                warm=warm - asked,
                cold_pause=_longest(answers, started, cold),
                warm_pause=_longest(answers, asked, warm),
                usual_pause=_usual(answers),
            )
        )
        say(f"round {len(rounds)}: {rounds[-1]}")
    await connections.close()
    return rounds


def _first(answer: BenchAnswer) -> float:
    return next(answer.events())[0]


def _gaps(answer: BenchAnswer) -> list[tuple[float, float]]:
    return list(pairwise(time for time, _ in answer.events()))


def _usual(answers: list[BenchAnswer]) -> float:
    return statistics.median(after - before for one in answers for before, after in _gaps(one))


def _longest(answers: list[BenchAnswer], start: float, end: float) -> float:
    """Of the waits that overlap with start ... end."""
    waits = [
        after - before
        for answer in answers
        for before, after in _gaps(answer)
        if before < end and after > start
    ]
    if not waits:
        raise ServerRefused(
            "the streams had ended before the adapter was there: the base is too small, or its "
            "length too short, to measure this"
        )
    return max(waits)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except LorryError as error:
        sys.exit(f"error: {error.message}")
