"""`Engine.step` and the only thread that calls it. Nothing else touches the model.

Requests, cancellations and removals arrive through the mailbox from any thread and are taken
between two steps. All events of a step leave together through `emit`. If running the model raises,
its rows run again separately (`lorry.engine.isolation`): those that fail alone end, and an adapter
at fault is refused from then on. A failure outside the model ends all requests. After
`MAX_FAILURES` steps in a row in which the base itself fails, the engine reports itself broken and
stops.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from lorry.core import (
    Batch,
    Capacity,
    EngineStats,
    Failure,
    FailureCode,
    RowResult,
    TokenEvent,
)
from lorry.engine.constraints import Constraints
from lorry.engine.endings import step_failure
from lorry.engine.isolation import Fault, Isolated, isolate
from lorry.engine.letters import Cancel, Forget, Letter, Mailbox, Submit
from lorry.engine.residency import SlotResidency
from lorry.engine.scheduler import Scheduler
from lorry_adapters.lora.adapter_memory import AdapterMemory

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Steps in a row in which the base itself may fail before the engine gives up."""


class Runner(Protocol):
    """Runs a batch through the model."""

    def run(self, batch: Batch) -> list[RowResult]: ...


class Engine:
    """Owns the scheduler, the residency and the runner, and steps them in a thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        residency: SlotResidency[Any],
        runner: Runner,
        mailbox: Mailbox,
        constraints: Constraints,
        *,
        emit: Callable[[list[TokenEvent]], None],
        slot_bytes: Callable[[], int] = lambda: 0,
        adapter_memory: AdapterMemory | None = None,
        on_step: Callable[[int, float], None] = lambda tokens, seconds: None,
        on_stats: Callable[[EngineStats], None] = lambda stats: None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`emit` and the other callbacks are called in the engine's thread; `on_stats` is called at
        each change."""
        self.scheduler = scheduler
        self.residency = residency
        self.runner = runner
        self.mailbox = mailbox
        self.capacity = Capacity(
            scheduler.limits.max_model_len,
            scheduler.blocks.num_blocks,
            scheduler.blocks.block_size,
            residency.slots.num_slots,
        )
        self.broken = False
        self._constraints = constraints
        self._emit = emit
        self._slot_bytes = slot_bytes
        self._adapter_memory = adapter_memory or AdapterMemory()
        self._on_step = on_step
        self._on_stats = on_stats
        self._on_broken = on_broken
        self._steps = 0
        self._failed_steps = 0
        self._failures = 0
        # Letters taken but not read, and events not sent: a failure must not lose them.
        self._letters: deque[Letter] = deque()
        self._news: list[TokenEvent] = []
        # Letters read and requests ended. With the others' counts it shows whether anything but the
        # speed has changed since the last snapshot.
        self._turns = 0
        self._seen: tuple[int, ...] = ()
        self._snapshot = (EngineStats(), 0, 0)
        self._look()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorry-engine", daemon=True)

    @property
    def stats(self) -> EngineStats:
        """The numbers as of the last step. Any thread may ask."""
        stats, steps, blocks = self._snapshot
        return replace(stats, steps=steps, kv_blocks_used=blocks)

    def offer(self, letter: Letter) -> bool:
        """Deliver a letter. Return False if the engine has ended and nobody will read it."""
        return self.mailbox.offer(letter)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current step; remaining requests get an error."""
        self._stopping.set()
        self.mailbox.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._constraints.close()
        self.residency.close()

    def step(self) -> None:
        """Take the letters, run one batch, send the events. Sleeps if there is no batch."""
        self._drain_mailbox()
        batch = self.scheduler.schedule()
        if batch is not None:
            self._run_batch(batch)
        self._news += self.scheduler.take_events()
        self._look()
        if not self._tell() and batch is None:
            self.mailbox.wait()

    def _drain_mailbox(self) -> None:
        self._letters.extend(self.mailbox.take())
        while self._letters:
            self._turns += 1
            match self._letters.popleft():
                case Submit(request):
                    constraint = request.constraint
                    self.scheduler.add(
                        request, None if constraint is None else self._constraints.begin(constraint)
                    )
                case Cancel(request_id):
                    self.scheduler.cancel(request_id)
                case Forget(digest):
                    self._forget(digest)

    def _run_batch(self, batch: Batch) -> None:
        began, failed = time.monotonic(), self._failed_steps
        try:
            found = self._outcome(batch)
            for fault in found.faults:
                self._end(fault)
            self._news += self.scheduler.commit(found.batch, found.results, began)
        except Exception as error:
            # The error is in our own code, not in the model: only this batch ends.
            logger.exception("the results of a step could not be reported")
            self.scheduler.fail([row.request_id for row in batch.rows], step_failure(error))
            self._failed_steps = failed + 1
            self._failures += 1
            return
        self._failures = self._failures + 1 if any(one.base for one in found.faults) else 0
        if found.batch.rows:
            self._steps += 1
            seconds = time.monotonic() - began
            self._on_step(found.batch.num_tokens, seconds)
            if found.batch is batch:
                self.scheduler.pace.learn(batch, seconds)

    def _outcome(self, batch: Batch) -> Isolated:
        try:
            return Isolated(batch, self.runner.run(batch))  # the only line that touches the model
        except Exception:
            logger.exception("a step of %d rows raised; they run again separately", len(batch.rows))
            self._failed_steps += 1
            return isolate(batch, self.runner.run)

    def _tell(self) -> bool:
        news, self._news = self._news, []
        if news:
            self._emit(news)
        return bool(news)

    def _end(self, fault: Fault) -> None:
        """End the request of a row that fails alone, and the requests that wait for its
        adapters."""
        failure = step_failure(fault.error)
        digests = tuple(map(self.residency.slots.digest_in, fault.slots))
        if digests:
            failure = Failure(FailureCode.ADAPTER_FAILED, failure.reason, digests=digests)
        for digest in digests:
            logger.error("adapter %s: computing it failed", digest, exc_info=fault.error)
            self.scheduler.fail_waiting(digest, failure)
            # Repaired files must be read again.
            self._forget(digest)
        self.scheduler.fail([fault.row.request_id], failure)

    def _forget(self, digest: str) -> None:
        """Free everything that was made from this content."""
        self.residency.forget(digest)
        self.scheduler.prefixes.forget(digest)
        if self.scheduler.speculation is not None:
            self.scheduler.speculation.forget(digest)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self.step()
                except Exception:
                    # The error is in our own code, not in the model: no request can be blamed.
                    logger.exception("the engine failed between two runs of the model")
                    self._failed_steps += 1
                    self._failures += 1
                    self._end_all(FailureCode.ENGINE_FAILED)
                if self._failures >= MAX_FAILURES:
                    logger.critical("%d steps in a row raised; the engine stops", self._failures)
                    self.broken = True
                    break
            self.mailbox.close()
            self._drain_mailbox()
            self._end_all(FailureCode.ENGINE_STOPPED)
        finally:
            self.mailbox.close()
            if self.broken:
                self._on_broken()

    def _end_all(self, code: FailureCode) -> None:
        while self.scheduler.num_requests:
            try:
                self.scheduler.fail_all(Failure(code))
            except Exception:
                # Every call ends at least one request, so this loop ends.
                logger.exception("a request could not be ended cleanly")
        self._news += self.scheduler.take_events()
        self._look()
        self._tell()

    def _look(self) -> None:
        """Renew the snapshot. Names are collected only if a request came, ended or moved."""
        scheduler, residency = self.scheduler, self.residency
        self._turns += sum(event.finish is not None for event in self._news)
        seen = (
            self._turns,
            scheduler.num_waiting,
            scheduler.preemptions,
            residency.loads,
            residency.evictions,
            self._failed_steps,
            self._adapter_memory.changes,
        )
        stats = self._snapshot[0]
        if seen != self._seen:
            stats = replace(
                scheduler.stats(),
                slots_total=residency.slots.num_slots,
                resident=residency.slots.resident,
                loads=residency.loads,
                evictions=residency.evictions,
                failed_steps=self._failed_steps,
                slot_bytes=self._slot_bytes(),
                adapter_bytes=self._adapter_memory.by_part(),
            )
        self._seen = seen
        before = self._snapshot
        self._snapshot = (stats, self._steps, scheduler.blocks.num_used)
        if self._snapshot != before:
            self._on_stats(self.stats)
