from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from lorry.bench import figures, machine, plot, report
from lorry.bench.answers import Difference
from lorry.bench.figures import percentile
from lorry.bench.load import LoadRun, LoadSample
from lorry.bench.session import Result
from lorry.bench.targets import Reading
from lorry.bench.workload import Ask, WorkloadRow

ASK = Ask("one two three four five six seven", 2, 0.5, 3, 0.0)


def sample(sent: float, *times: float, problem: str | None = None) -> LoadSample:
    reading = Reading(times, len(times), "text", problem=problem)
    return LoadSample(ASK, sent, times[-1] if times else sent, reading)


RUN = LoadRun(
    samples=(
        sample(0.0, 1.0, 1.5, 3.0),
        sample(0.0, 2.0, 3.0, 4.0),
        sample(1.0, problem="429: full"),
    ),
    seconds=4.0,
    client_seconds=0.2,
    late=0.0,
)


def test_percentiles_lie_between_the_nearest() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile(list(range(101)), 99) == 99
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))


def test_figures_of_a_run() -> None:
    found = figures.of(RUN)
    assert found.tokens_per_second == pytest.approx(6 / 4)
    assert found.requests_per_second == pytest.approx(2 / 4)
    assert found.first_token.p50 == pytest.approx(1.5)
    assert found.per_token.p50 == pytest.approx(1.0)
    assert found.end_to_end.p50 == pytest.approx(3.5)
    assert found.longest_pause == pytest.approx(1.5)
    assert (found.tokens, found.requests, found.errors) == (6, 3, 1)
    assert found.problems == {"429: full": 1}
    assert found.client_share == pytest.approx(0.05)


def test_the_middle_of_repeats_is_their_median_and_errors_add_up() -> None:
    quick = LoadRun(RUN.samples[:2], seconds=2.0, client_seconds=0.0, late=0.0)
    slow = LoadRun(RUN.samples, seconds=12.0, client_seconds=0.0, late=0.0)
    found = figures.middle([figures.of(quick), figures.of(RUN), figures.of(slow)])
    assert found.tokens_per_second == pytest.approx(1.5)
    assert found.throughputs == pytest.approx((3.0, 1.5, 0.5))
    assert (found.requests, found.errors, found.problems) == (8, 2, {"429: full": 2})


def test_the_share_of_prompts_that_was_cached_and_the_times_of_turns() -> None:
    def turn(at: int, first: float, cached: int) -> LoadSample:
        reading = Reading((first, first + 1), 2, "text", prompt_tokens=10, cached_tokens=cached)
        return LoadSample(replace(ASK, turn=at), 0.0, first + 1, reading)

    samples = (turn(0, 3.0, 0), turn(1, 1.0, 8), turn(0, 5.0, 2), turn(1, 1.0, 8))
    found = figures.of(LoadRun(samples, seconds=4.0, client_seconds=0.0, late=0.0))
    assert found.cached == pytest.approx(18 / 40)
    assert found.first_token_by_turn == (4.0, 1.0)
    assert figures.middle([found, found]).first_token_by_turn == (4.0, 1.0)
    plain = figures.of(RUN)
    assert math.isnan(plain.cached) and plain.first_token_by_turn == ()
    made = report.Report(
        machine.look(),
        {"api": "lorry"},
        [
            Result(WorkloadRow("chats", 4, concurrency=1, turns=2), [found]),
            Result(WorkloadRow("plain", 3, concurrency=1), [plain]),
        ],
    )
    at = report.COLUMNS.index("cached")
    assert [row[at] for row in made.table()] == ["45%", "-"]


def test_a_report_says_everything_and_has_no_nan() -> None:
    failed = LoadRun((RUN.samples[2],), seconds=1.0, client_seconds=0.0, late=0.0)
    results = [
        Result(WorkloadRow("good", 3, concurrency=1), [figures.of(RUN)], memory=[1, 2]),
        Result(WorkloadRow("<bad>", 1, rate=2.0, adapters=2), [figures.of(failed)]),
    ]
    alone = Reading((1.0,), 1, "test")
    different = Difference(ASK, Reading((1.0,), 1, "text"), alone)
    made = report.Report(machine.look(), {"api": "lorry"}, results, 3, [different])
    document = json.loads(json.dumps(made.as_json(), allow_nan=False))
    good, bad = document["rows"]
    assert good["figures"]["tokens_per_second"] == pytest.approx(1.5)
    assert good["server_memory"] == [1, 2] and good["load"] == "c=1"
    assert bad["figures"]["first_token"]["p50"] is None and bad["load"] == "2/s"
    assert bad["figures"]["problems"] == {"429: full": 1}
    assert document["machine"]["cores"] >= 1 and document["machine"]["packages"]["torch"]
    assert document["answers"]["checked"] == 3
    (said,) = document["answers"]["different"]
    assert "adapter 2 at 0.5" in said and "'text' under load" in said and "'test' alone" in said
    lines = made.table()
    assert len(lines[0]) == len(report.COLUMNS)
    assert lines[0][:2] == ("good", "1.5") and lines[1][-1] == 1
    picture = plot.svg(made, "a <title>")
    assert picture.startswith("<svg") and "&lt;bad&gt;" in picture and "a &lt;title&gt;" in picture


def test_a_report_that_cannot_be_written_is_said_in_a_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(report.CannotWrite, match="cannot be written"):
        report.write(tmp_path / "file" / "below.json", "{}")
