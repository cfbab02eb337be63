"""From what the command line says to results: servers started, adapters sent, rows measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lorry.bench import own_server, random_adapters, report
from lorry.bench.administration import Administration, ServerRefused
from lorry.bench.answers import Difference
from lorry.bench.machine import resident_bytes
from lorry.bench.preset import Stage
from lorry.bench.served_base import ServedBase
from lorry.bench.session import Result, Session
from lorry.bench.targets import GREEDY, LlamaCppTarget, LorryTarget, OpenAITarget, Sampling, Target

APIS = ("lorry", "openai", "llamacpp")


class Ticker(Protocol):
    """Somebody who shows how far things are."""

    def began(self, what: str) -> None: ...

    def done(self) -> None: ...


class Show(Protocol):
    """Opens a ticker for `total` steps."""

    def __call__(self, title: str, total: int | None) -> AbstractContextManager[Ticker]: ...


@dataclass(slots=True)
class Outcome:
    """Everything measured, over all stages."""

    server: dict[str, Any] = field(default_factory=dict)
    """What the first stage's server says of itself."""
    results: list[Result] = field(default_factory=list)
    checked: int | None = None
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Campaign:
    base: ServedBase
    url: str | None
    """None: a server of our own for each stage."""
    serve_flags: Sequence[str]
    api: str
    api_key: str | None
    model_name: str | None
    """Of the base at an OpenAI server; None asks it."""
    adapter_names: Sequence[str] | None
    """That the server has; None makes some (our API) or takes the usual names (others')."""
    rank: int
    repeats: int
    seed: int
    timeout: float
    check_answers: bool
    sampling: Sampling = GREEDY

    def run(self, stages: Sequence[Stage], show: Show) -> Outcome:
        """Raises LorryError of several kinds: no server, no base, no adapters."""
        outcome = Outcome(checked=0 if self.check_answers else None)
        for stage in stages:
            with ExitStack() as stack:
                url, pid = self._server(stage, stack, show)
                administration = stack.enter_context(Administration(url, self.api_key))
                if not outcome.server:
                    outcome.server = {"api": self.api, **self._facts(administration)}
                    if pid is not None:
                        outcome.server["resident_at_start"] = resident_bytes(pid)
                wanted = max(row.adapters for row in stage.rows)
                shares = any(row.shares for row in stage.rows)
                target = stack.enter_context(self._target(administration, wanted, shares, show))
                key = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
                session = Session(
                    url=url,
                    target=target,
                    headers=key,
                    repeats=self.repeats,
                    seed=self.seed,
                    timeout=self.timeout,
                    memory=None if pid is None else partial(resident_bytes, pid),
                )
                self._measure(stage, session, show, outcome)
        return outcome

    def _measure(self, stage: Stage, session: Session, show: Show, outcome: Outcome) -> None:
        with show("measuring", session.requests(stage.rows)) as ticker:
            results = session.measure(
                stage.rows,
                keep_samples=self.check_answers,
                began=ticker.began,
                on_done=ticker.done,
            )
        outcome.results += results
        if outcome.checked is not None:
            count = sum(len(result.samples) for result in results)
            with show("asking again, alone", count) as ticker:
                outcome.differences += session.check(results, ticker.done)
            outcome.checked += count
            for result in results:
                result.samples.clear()

    def _server(self, stage: Stage, stack: ExitStack, show: Show) -> tuple[str, int | None]:
        if self.url is not None:
            return self.url, None
        folder = self.base.folder
        with show("starting a server", None) as ticker:
            flags = [*stage.flags, *self.serve_flags]
            server = stack.enter_context(
                own_server.running(folder, self.base.name, flags, waiting=ticker.done)
            )
        return server.url, server.pid

    def _facts(self, administration: Administration) -> dict[str, Any]:
        return report.describe(administration.info()) if self.api == "lorry" else {}

    @contextmanager
    def _target(
        self, administration: Administration, wanted: int, shares: bool, show: Show
    ) -> Iterator[Target]:
        """Adapters that were put on the server for it leave again at the end."""
        names = self.adapter_names
        if names is not None and len(names) < wanted:
            raise ServerRefused(f"{wanted} adapters are asked for and {len(names)} are named")
        usual = [random_adapters.name_of(index, self.rank) for index in range(wanted)]
        match self.api:
            case "openai":
                model = self.model_name or administration.first_model()
                yield OpenAITarget(model, names or usual, self.sampling)
            case "llamacpp":
                numbers = administration.llama_cpp_adapters()
                if len(numbers) < wanted:
                    raise ServerRefused(
                        f"{wanted} adapters are asked for and the server was started with "
                        f"{len(numbers)} (--lora)"
                    )
                chosen = numbers if names is None else [int(name) for name in names]
                yield LlamaCppTarget(chosen, numbers, self.sampling, cache_prompt=shares)
            case _ if names is not None:
                yield LorryTarget(names, self.sampling)
            case _:
                added = self._upload(administration, usual, show)
                try:
                    yield LorryTarget(usual, self.sampling)
                finally:
                    if self.url is not None:
                        for name in added:
                            administration.remove(name)

    def _upload(
        self, administration: Administration, names: Sequence[str], show: Show
    ) -> list[str]:
        """The names of those that were not there yet."""
        if not names:
            return []
        added = []
        with (
            show("making and sending adapters", len(names)) as ticker,
            tempfile.TemporaryDirectory(prefix="lorry-bench-") as scratch,
        ):
            # One file, written over and over: 64 adapters are more than a gigabyte.
            for index, name in enumerate(names):
                self.base.write_adapter(Path(scratch), index, self.rank)
                if administration.upload(name, Path(scratch)):
                    added.append(name)
                ticker.done()
        return added
