"""The asyncio side of the engine: accepts requests and returns each as a stream of events.

It lives in the event loop's thread. The engine's thread delivers all events of a step at once,
and they are sorted into one queue per request here. Only values cross to the engine and back
(`lorry.core`). A request's lease stays here until its final event.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from lorry.constraint import Constraint
from lorry.core import (
    SHARED,
    Caching,
    Capacity,
    EngineStats,
    Failure,
    FailureCode,
    Pooling,
    Request,
    SamplingParams,
    TokenEvent,
)
from lorry.engine.invocation import uses_of
from lorry.engine.letters import Cancel, Forget, Letter, Submit
from lorry.engine.places import Place, Places
from lorry.engine.task import check_task
from lorry.errors import (
    DoesNotFit,
    EngineRemedy,
    InvalidRequest,
    PromptTooLong,
    RequestError,
    ShuttingDown,
)
from lorry_adapters.errors import AdapterError, Problem
from lorry_adapters.registry.record import AdapterChoice, AdapterRef, Lease
from lorry_adapters.registry.registry import Registry

SHUTTING_DOWN = "the server is shutting down; send the request elsewhere"


class Generation(AsyncIterator[TokenEvent]):
    """One request's events; ends after the one with a `finish`."""

    def __init__(
        self,
        client: EngineClient,
        request_id: str,
        lease: Lease,
        place: Place,
    ) -> None:
        self.refs: tuple[AdapterRef, ...] = lease.refs
        self._lease = lease
        self._client = client
        self._place = place
        self._id = request_id
        self._events: deque[TokenEvent] = deque()
        # Set while the only listener waits.
        self._listener: asyncio.Future[None] | None = None
        self._ended = False

    async def __anext__(self) -> TokenEvent:
        if self._ended:
            raise StopAsyncIteration
        while not self._events:
            assert self._listener is None, "one listener per generation"
            self._listener = asyncio.get_running_loop().create_future()
            try:
                await self._listener
            finally:
                self._listener = None
        event = self._events.popleft()
        self._ended = event.finish is not None
        return event

    def _put(self, event: TokenEvent) -> None:
        self._place.leave()
        self._events.append(event)
        listener = self._listener
        # Done: it was set already, or the listener was cancelled and will not look.
        if listener is not None and not listener.done():
            listener.set_result(None)

    async def aclose(self) -> None:
        """Cancel the request unless it has ended. The lease is released when the engine reports the
        end, as a row may still be running."""
        if not self._ended:
            self._ended = True
            # It no longer waits for anything, so it must not keep other requests out of the queue
            # until the engine reports the end.
            self._place.leave()
            self._client._cancel(self._id)


class Link(Protocol):
    """The engine, in this process or another. Any thread may use it."""

    @property
    def capacity(self) -> Capacity: ...

    @property
    def stats(self) -> EngineStats:
        """The numbers as of the last step."""
        ...

    @property
    def broken(self) -> bool:
        """True if it has failed for good."""
        ...

    def offer(self, letter: Letter) -> bool:
        """Deliver a letter. Return False if the engine has ended and nobody will read it."""
        ...


class EngineClient:
    """The engine's interface for the HTTP side."""

    def __init__(self, engine: Link, registry: Registry, *, max_queue: int) -> None:
        self.capacity = engine.capacity
        self._engine = engine
        self._registry = registry
        self._places = Places(max_queue)
        self._draining = False
        self._generations: dict[str, Generation] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def ready(self) -> bool:
        return not (self._draining or self._engine.broken)

    def room(self, choices: Sequence[AdapterChoice]) -> int:
        """Return the tokens that prompt and answer can have together beside these adapters' own."""
        limit = min(self.capacity.max_model_len, self.capacity.kv_tokens)
        return limit - self._registry.virtual_tokens(choices)

    def check_room(self, caller: str) -> None:
        """Raise QueueFull or ShuttingDown if `enter` would."""
        self._check_open()
        self._places.check(caller)

    def enter(self, caller: str, weight: float = 1.0) -> Place:
        """Take a place in the queue for a request whose prompt is not tokenized yet. Raises
        QueueFull or ShuttingDown."""
        self._check_open()
        return self._places.enter(caller, weight)

    async def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        choices: Sequence[AdapterChoice] = (),
        constraint: Constraint | None = None,
        pooling: Pooling | None = None,
        place: Place | None = None,
        caching: Caching = SHARED,
        speculative: bool | None = None,
    ) -> Generation:
        """Accept a request, or raise the reason against it. With a `pooling` its only event has a
        vector. `place`: the result of `enter`, shared by all sequences of one request; None takes
        a new one.

        Raises:
            AdapterError: what `Registry.acquire` and `check_task` raise.
            KeyLimitExceeded: a scale is beyond what the caller's key allows.
            InvalidRequest: an empty prompt.
            InvocationMissing: the prompt does not call an activated LoRA.
            PromptTooLong: virtual tokens, prompt and answer exceed the model's length, or the
                prompt alone exceeds the whole KV cache.
            DoesNotFit: the request exceeds the whole KV cache, or the slots.
            QueueFull: too many requests wait.
            ShuttingDown: the server drains.
        """
        self._check_open()
        if not prompt_ids:
            raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
        place = (place or self._places.enter("")).use()
        try:
            lease = self._registry.acquire(choices)
        except (RequestError, AdapterError):
            place.leave()
            raise
        try:
            check_task(lease.refs, pooling)
            self._check_size(lease, len(prompt_ids), params.max_new_tokens)
            self._check_slots(lease)
            adapters = uses_of(lease.refs, prompt_ids)
        except (RequestError, AdapterError):
            place.leave()
            lease.release()
            raise
        request_id = uuid.uuid4().hex
        generation = Generation(self, request_id, lease, place)
        self._loop = asyncio.get_running_loop()
        self._generations[request_id] = generation
        self._idle.clear()
        request = Request(
            request_id,
            tuple(prompt_ids),
            params,
            adapters,
            time.monotonic(),
            constraint,
            pooling,
            place.caller,
            caching,
            speculative=speculative,
            weight=place.weight,
        )
        if not self._engine.offer(Submit(request)):
            # It ended after the check above: nobody would ever answer.
            place.leave()
            self._drop(generation)
            raise ShuttingDown(SHUTTING_DOWN)
        return generation

    async def drain(self, grace: float) -> bool:
        """Refuse new requests and wait up to `grace` seconds until those accepted have ended.

        Return True if all of them ended by themselves."""
        self._draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        left = list(self._generations)
        for request_id in left:
            self._cancel(request_id)
        return not left

    def forget(self, digest: str) -> None:
        """The registry has freed this content. Any thread may call it."""
        self._engine.offer(Forget(digest))

    def emit(self, events: Sequence[TokenEvent]) -> None:
        """Take the engine's events. Any thread may call it."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._deliver, events)
        except RuntimeError:
            # The loop has closed: nobody listens, and no other thread touches this object.
            self._deliver(events)

    def _deliver(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            generation = self._generations.get(event.request_id)
            assert generation is not None, "one final event per request"
            failure = event.failure
            if failure is not None:
                event = replace(event, failure=self._noted(failure))
            generation._put(event)
            if event.finish is not None:
                self._drop(generation)

    def _noted(self, failure: Failure) -> Failure:
        """Tell the registry to refuse the adapters at fault. Return the failure for the request."""
        if failure.code is FailureCode.ADAPTER_FAILED:
            for digest in failure.digests:
                self._registry.mark_broken(digest, f"computing it failed ({failure.reason})")
        if failure.code is FailureCode.FILES_BROKEN:
            for digest in failure.digests:
                # If the home folder is in trouble, the files may be fine.
                trouble = self._registry.storage.trouble()
                if trouble is not None:
                    return Failure(FailureCode.STORE_UNUSABLE, trouble)
                self._registry.mark_broken(digest, failure.problem)
        return failure

    def _drop(self, generation: Generation) -> None:
        del self._generations[generation._id]
        generation._lease.release()
        if not self._generations:
            self._idle.set()

    def _cancel(self, request_id: str) -> None:
        # An engine that has ended needs no cancellation.
        self._engine.offer(Cancel(request_id))

    def _check_open(self) -> None:
        if self._draining or self._engine.broken:
            raise ShuttingDown(SHUTTING_DOWN)

    def _check_size(self, lease: Lease, num_prompt: int, max_new_tokens: int) -> None:
        virtual = sum(ref.virtual_tokens for ref in lease.refs if ref.scale != 0.0)
        total, limit = virtual + num_prompt + max_new_tokens, self.capacity.max_model_len
        if total > limit:
            raise PromptTooLong(_too_long(num_prompt, virtual, max_new_tokens, limit))
        capacity = self.capacity.kv_tokens
        if total > capacity:
            if virtual + num_prompt + min(max_new_tokens, 1) > capacity:
                text = _too_long(num_prompt, virtual, max_new_tokens, capacity)
                raise PromptTooLong(Problem(text, EngineRemedy.MORE_CACHE))
            text = f"the request needs {total} tokens of KV cache, but the server has {capacity}"
            raise DoesNotFit(Problem(f"{text}; shorten it", EngineRemedy.MORE_CACHE))

    def _check_slots(self, lease: Lease) -> None:
        needed = len({ref.digest for ref in lease.refs if ref.scale != 0.0})
        slots = self.capacity.slots
        if needed > slots:
            text = f"the request sums {needed} adapters, but the server has {slots} slots"
            problem = Problem(f"{text}; ask for fewer", EngineRemedy.MORE_SLOTS)
            raise DoesNotFit(problem, param="adapter")


def _too_long(num_prompt: int, virtual: int, new: int, limit: int) -> str:
    """Return a message. Clients detect this error by two phrases: "prompt is too long" and "this
    model's maximum context length is N tokens"."""
    before = f", its adapter puts {virtual} virtual ones before them" if virtual else ""
    context = f"this model's maximum context length is {limit} tokens"
    # An answer has at least one token; vectors have none.
    if virtual + num_prompt + min(new, 1) > limit:
        left = " and an answer needs one more" if new and virtual + num_prompt == limit else ""
        return (
            f"the prompt is too long: it has {num_prompt} tokens{before}{left}, and {context}; "
            "shorten it"
        )
    return (
        f"the prompt is too long for the answer asked for: it has {num_prompt} tokens{before}, "
        f"{new} new ones make {virtual + num_prompt + new} together, and {context}; shorten one "
        "of them"
    )
