"""`Engine.step`, and the one thread that takes it. Nothing else touches the model.

Requests, cancellations and removals arrive through the mailbox, from any thread,
and are taken between two steps. Events leave through `emit`, a step's worth at a
time. When a run of the model raises, its rows run again apart (`lorry.engine.isolation`):
those that fail alone end, and an adapter that is at fault is refused from then on. A
failure outside of the model ends all requests. `MAX_FAILURES` steps in a row in which
the base itself fails, and the engine calls itself broken and stops.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lorry.core import Batch, EngineStats, Request, RowResult, TokenEvent
from lorry.engine.isolation import Fault, Isolated, isolate
from lorry.engine.residency import SlotResidency
from lorry.engine.scheduler import Scheduler
from lorry.errors import GenerationFailed

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Steps in a row that the base itself may fail in before the engine gives up."""

PATIENCE = 0.5
"""Seconds an idle engine sleeps when nobody wakes it."""


class Runner(Protocol):
    """Runs a batch through the model."""

    def run(self, batch: Batch) -> list[RowResult]: ...


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The registry has let go of this content."""

    digest: str


Letter = Submit | Cancel | Forget


class Mailbox:
    """Letters to the engine; any thread puts, the engine takes."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._woken = False
        self._closed = False
        self._changed = threading.Condition()

    def put(self, letter: Letter) -> None:
        """An engine that has ended needs no news."""
        self.offer(letter)

    def offer(self, letter: Letter) -> bool:
        """False where the engine has ended: nobody will ever read it."""
        with self._changed:
            if self._closed:
                return False
            self._letters.append(letter)
            self._changed.notify()
            return True

    def wake(self) -> None:
        """Something else has changed that the engine should look at."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def take(self) -> list[Letter]:
        with self._changed:
            letters, self._letters = self._letters, []
            self._woken = False
            return letters

    def close(self) -> None:
        """No more letters; those that are here can still be taken."""
        with self._changed:
            self._closed = True

    def wait(self) -> None:
        """Sleep until there is a letter or a wake since the last `take`."""
        with self._changed:
            self._changed.wait_for(lambda: self._letters or self._woken, timeout=PATIENCE)


class Engine:
    """Owns the scheduler, the residency and the runner, and steps them in a thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        residency: SlotResidency[Any],
        runner: Runner,
        mailbox: Mailbox,
        *,
        emit: Callable[[list[TokenEvent]], None],
        blame: Callable[[str, str], Exception],
        on_step: Callable[[int, float], None] = lambda tokens, seconds: None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`blame(digest, why)`: an adapter made a step fail, so that nobody may get it any more;
        it gives the error for those who have it. It is called in the engine's thread."""
        self.scheduler = scheduler
        self.residency = residency
        self.runner = runner
        self.mailbox = mailbox
        self.broken = False
        self._emit = emit
        self._blame = blame
        self._on_step = on_step
        self._on_broken = on_broken
        self._steps = 0
        self._failed_steps = 0
        self._failures = 0
        # Letters taken and not yet read, events not yet told: what a failure must not lose.
        self._letters: deque[Letter] = deque()
        self._news: list[TokenEvent] = []
        # Letters read and requests ended: with what the others count, it tells whether
        # anything but the pace has changed since the last snapshot.
        self._turns = 0
        self._seen: tuple[int, ...] = ()
        self._snapshot = (EngineStats(), 0, 0)
        self._look()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorry-engine", daemon=True)

    @property
    def stats(self) -> EngineStats:
        """As of the last step. Any thread may ask."""
        stats, steps, blocks = self._snapshot
        return replace(stats, steps=steps, kv_blocks_used=blocks)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it is in; requests still there get an error."""
        self._stopping.set()
        self.mailbox.wake()
        if self._thread.is_alive():
            self._thread.join()
        self.residency.close()

    def step(self) -> None:
        """Take the letters, run one batch, tell the news. Sleeps when there is no batch."""
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
                    self.scheduler.add(request)
                case Cancel(request_id):
                    self.scheduler.cancel(request_id)
                case Forget(digest):
                    self.residency.forget(digest)

    def _run_batch(self, batch: Batch) -> None:
        began, failed = time.monotonic(), self._failed_steps
        try:
            found = self._outcome(batch)
            for fault in found.faults:
                self._end(fault)
            self._news += self.scheduler.commit(found.batch, found.results, began)
        except Exception as error:
            # Not the model but we ourselves: whatever it is, only this batch ends.
            logger.exception("what a step gave could not be told")
            self.scheduler.fail([row.request_id for row in batch.rows], _failure(error))
            self._failed_steps = failed + 1
            self._failures += 1
            return
        self._failures = self._failures + 1 if any(one.base for one in found.faults) else 0
        if found.batch.rows:
            self._steps += 1
            self._on_step(found.batch.num_tokens, time.monotonic() - began)

    def _outcome(self, batch: Batch) -> Isolated:
        try:
            return Isolated(batch, self.runner.run(batch))  # the only line that touches the model
        except Exception:
            logger.exception("a step of %d rows raised; they run again apart", len(batch.rows))
            self._failed_steps += 1
            return isolate(batch, self.runner.run)

    def _tell(self) -> bool:
        news, self._news = self._news, []
        if news:
            self._emit(news)
        return bool(news)

    def _end(self, fault: Fault) -> None:
        """End the request of a row that fails alone, and what waits for its guilty adapters."""
        failure: Exception = _failure(fault.error)
        for slot in fault.slots:
            digest = self.residency.slots.digest_in(slot)
            why = f"computing it failed ({type(fault.error).__name__})"
            logger.error("adapter %s: %s", digest, why, exc_info=fault.error)
            failure = self._blame(digest, why)
            self.scheduler.fail_waiting(digest, failure)
            # Mended files shall be read anew.
            self.residency.forget(digest)
        self.scheduler.fail([fault.row.request_id], failure)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self.step()
                except Exception:
                    # Not the model but we ourselves: nobody knows whose fault it was.
                    logger.exception("the engine failed between two runs of the model")
                    self._failed_steps += 1
                    self._failures += 1
                    self._end_all("the server failed while it held this request; send it again")
                if self._failures >= MAX_FAILURES:
                    logger.critical("%d steps in a row raised; the engine stops", self._failures)
                    self.broken = True
                    break
            self.mailbox.close()
            self._drain_mailbox()
            self._end_all("the server stopped before this request ended")
        finally:
            self.mailbox.close()
            if self.broken:
                self._on_broken()

    def _end_all(self, why: str) -> None:
        while self.scheduler.num_requests:
            try:
                self.scheduler.fail_all(GenerationFailed(why))
            except Exception:
                # Every call ends one request at least, so this comes to an end.
                logger.exception("a request ended untidily")
        self._news += self.scheduler.take_events()
        self._look()
        self._tell()

    def _look(self) -> None:
        """Renew the snapshot. Names are gathered only when somebody came, went or moved."""
        scheduler, residency = self.scheduler, self.residency
        self._turns += sum(event.finish is not None for event in self._news)
        seen = (
            self._turns,
            scheduler.num_waiting,
            scheduler.preemptions,
            residency.loads,
            residency.evictions,
            self._failed_steps,
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
            )
        self._seen = seen
        self._snapshot = (stats, self._steps, scheduler.blocks.num_used)


def _failure(error: Exception) -> GenerationFailed:
    return GenerationFailed(
        f"the step that ran this request failed ({type(error).__name__}); "
        "send it again, and see the server's log if it fails again"
    )
